"""The small world that is always there: pictures of 45 things in four styles, and a CLIP that never saw them.

`icons/` holds the data set, `clip/` the model as open_clip reads it; `tools/build_icons/` makes both again.
"""

from pathlib import Path

ICONS_FOLDER = Path(__file__).with_name("icons")
CLIP_FOLDER = Path(__file__).with_name("clip")
