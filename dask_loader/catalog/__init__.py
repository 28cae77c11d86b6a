"""What lies where: paths to files, files to footers, footers to a catalog of numbers.

Only metadata are read here. What comes out is plain (names, numbers, one Arrow schema), so
that it is cheap to send: a pickled FileMetaData costs as much as reading the footer again.
"""
