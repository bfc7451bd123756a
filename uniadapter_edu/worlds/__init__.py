"""Where pictures and words come from: the embedded emoji world, and (through `datasets`) real benchmarks."""
