"""From files to files: what each stage of the paper does with all images of a data set.

The modules of the paper know tensors alone; here their functions are called for one image after
the other, over all cores, and what they give is written aside and renamed, so that a stage that is
stopped goes on with the images that are missing.
"""
