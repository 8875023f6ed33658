"""Features of many pairs to figures.

`sources` opens what is evaluated; `features` embeds every pair once, each rank its share; `ranks`
counts who comes before the right candidate, on all ranks together; `retrieval` puts the record
together from `metrics` (recall, median rank, ...), `candidate_pools` (who is a candidate, and right
for whom), `bootstrap` (intervals) and `concepts` (relevance by UMLS concepts, from `top_k`).
`classification` judges by labels what tells one class of an image, `findings` what tells several.
"""
