"""Words that records and pages share, each list once. No torch here."""

DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
"""Of retrieval: the key in a record -> what people read."""

FEW_QUERIES = 10
"""Below so many a count is shown ("1 of 3"): a share, or an interval of draws, would claim much."""

MODALITIES = {
    "CT": "C0040405",
    "X-ray": "C1306645",
    "MRI": "C0024485",
    "Ultrasound": "C0041618",
    "Angiography": "C0002978",
    "PET": "C0032743",
    "PET/CT": "C1699633",
}
"""How ROCOv2 says an image was made (Rückert et al. 2024): name -> UMLS concept (CUI)."""
