"""How a window's bytes get from where they are decoded to where they are batched.

A window travels as one block of aligned columns (see window.py). In this process the
block is a reused slab (slabs.py); between hosts it is a parcel of out-of-band buffers
(parcel.py).
"""
