"""The data: VOC layout, toy scenes, own photographs, and VOC 2012 with SBD."""
