"""The local page: `serve` keeps it here, `page` lays it out (gradio), `handlers` answer."""
