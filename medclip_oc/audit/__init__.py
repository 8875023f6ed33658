"""What is in a source before it is packed: copies of images and captions, leaks between splits.

`audit` leads: `scan` decodes every pair and keeps what it is compared by, `near_duplicates` finds
the candidates among all of them, `registration` lays one image of a pair over the other.
"""
