"""Let an environment see the dependencies of the one that runs this, but not its own package."""

import sys
import sysconfig
from pathlib import Path

target = Path(sys.argv[1])
(site,) = target.glob("lib/python3.*/site-packages")
# A directory named in a .pth file joins sys.path, but its own .pth files (the editable install
# among them) are not read.
(site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
