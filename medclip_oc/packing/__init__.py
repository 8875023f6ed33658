"""Packing: people's images and captions in, a shard folder out. One image takes these steps:

1. `formats` tells by looking what kind of data set a folder is, and names its tables and images;
2. `tables` reads a row of the caption table, whose kind of file `table_files` knows;
3. `sources` joins what else is known by its id, cleans the caption, and yields a `Pair`, or a
   `Reject` with the reason; `groups`, where asked, says which belong together, and splits by that;
4. `image_store` finds the image that the id names: a file, a member of a zip, a cell of a table;
5. `pack` has workers read it, `imaging.encode` check it and keep its bytes or encode it anew, and
   makes the three members: image, caption, facts;
6. `tar_writer` appends them to a tar, by webdataset's TarWriter, and hashes it;
7. `journal` remembers each finished tar, so that a killed packing resumes, and at the end writes
   index.json, sizes.json and rejects.csv;
8. `report` says what was packed and what not, and `verify` reads it all again.
"""
