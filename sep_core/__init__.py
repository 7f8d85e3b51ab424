"""The science of Self-Ensemble Protection (SEP; Chen et al., ICLR 2023): tensors in, numbers out.

No web, no database, no files. Shape letters, used in every annotation of this package:

    n  images of a data set         b  images of a batch         k  checkpoints of an ensemble
    c  channels, 1 or 3             h  height in pixels          w  width in pixels
    d  features of the network      y  classes                  m  images to test on
    s  side of the square that networks see, in pixels

`pixels` are uint8, channels first; `images` are float32 in [0, 1]; `labels` are int64 in [0, y).
"""
