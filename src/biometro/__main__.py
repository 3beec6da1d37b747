import sys

from biometro.cli import main

sys.exit(main())
