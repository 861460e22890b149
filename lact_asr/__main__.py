"""``python -m lact_asr``: the console command ``lact-asr`` where its script is not on the path."""

import sys

from lact_asr.command_line import main

sys.exit(main())
