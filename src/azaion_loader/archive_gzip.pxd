# The classes of this module are plain Python classes: they hold no C state, only zlib's.
