"""Pages taken apart: their tags, attributes and text; and a text that would do harm as markup."""

from html.parser import HTMLParser

NASTY = """<script>alert("1")</script> & 'quoted' <img src=x onerror=alert(1)> {{ 7 * 7 }} $x_$"""


class Reader(HTMLParser):
    """Collects the tags, their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = list[str](), list[tuple[str, str | None]](), ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data
