"""The helper package behind the AffinityNet notebooks: image tags in, pixel masks out."""

import warnings

__version__ = "0.1.0"

# timm loads tqdm's notebook widgets, which are not used here and need not be installed.
warnings.filterwarnings("ignore", message="IProgress not found")
