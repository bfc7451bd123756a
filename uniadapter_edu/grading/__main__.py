import sys

from uniadapter_edu.grading.course import main

if __name__ == "__main__":
    sys.exit(main())
