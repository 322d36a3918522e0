"""HTML read strictly: what it holds, and a failure where a tag closes another one than was opened."""

from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Nesting(HTMLParser):
    """Collects ids, links and text, and fails on a tag that closes another one than was opened."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.words, self.scripts = [], [], [], [], 0

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def parse(html):
    parser = Nesting()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser
