"""Reads texts from the files of packages: English prose from docstrings, translated messages from .po files, and Python source code."""

import ast
import hashlib
import html
import re

# Lines that begin or end an entry of a .po file; other lines that begin with a quotation mark continue a string.
FIELD = re.compile(r'^(msgctxt|msgid|msgid_plural|msgstr)(\[\d+\])?\s+(".*")$')
TAG = re.compile(r"</?[A-Za-z][^<>]*>")
PLACEHOLDER = re.compile(r"%\(\w+\)[a-z]|\{[\w.:!]*\}|%[sd]")
ROLE = re.compile(r":[\w:+-]+:(?=`)")
LINK = re.compile(r"`+([^`<]*?)\s*(?:<[^`>]*>)?`+_{0,2}")
EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}([^*\s](?:[^*]*[^*\s])?)\*{1,2}(?![\w*])")
# Least number of words, and least share of letters, commas, periods and spaces, of a paragraph that counts as prose.
WORDS, PROSE = 8, 0.94


def is_held_out(key, share=10):
    """True for one in `share` keys. The choice depends on the key alone, so that the files or messages of the two sets never overlap."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % share == 0


def docstrings(source):
    """Returns the docstrings of a Python source in the order of the file, and none if Python cannot read it."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return []
    nodes = [node for node in nodes if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [text for text in map(ast.get_docstring, nodes) if text]


def without_markup(text):
    """Returns text without the marks of reStructuredText for roles, links, literals and emphasis, and with single spaces."""
    text = EMPHASIS.sub(r"\1", LINK.sub(r"\1", ROLE.sub("", text)))
    return " ".join(text.split())


def prose(docstring):
    """Returns the paragraphs of a docstring that are sentences: no examples, tables, headings, directives, formulas or signatures."""
    found = []
    for block in re.split(r"\n\s*\n", docstring):
        # A heading is underlined. A line "name : type" begins the description of a parameter.
        block = re.sub(r"(?m)^.*\n\s*[-=~^]{3,}\s*$", "", block)
        lines = [line.strip() for line in block.splitlines() if not re.match(r"\s*[\w*, ]+ :( |$)", line)]
        if any(line.startswith((">>>", "...", "..", "$", "|", "+-", "In [", ":")) for line in lines):
            continue
        paragraph = without_markup(" ".join(lines))
        readable = sum(letter.isalpha() or letter in " ,." for letter in paragraph)
        if len(paragraph.split()) >= WORDS and readable >= PROSE * len(paragraph):
            found.append(paragraph)
    return found


def messages(content):
    """Returns the translations of a .po file: no header, nothing fuzzy or obsolete, and nothing that equals its original."""
    found, entry, fuzzy, field = [], {}, False, None

    def end():
        originals = {text for name, text in entry.items() if name.startswith("msgid")}
        if entry.get("msgid") and not fuzzy:
            found.extend(text for name, text in entry.items() if name.startswith("msgstr") and text and text not in originals)
        entry.clear()

    for line in map(str.strip, content.splitlines()):
        match = FIELD.match(line)
        # A comment, or the first field after a translation, begins the next entry.
        if "msgstr" in (field or "") and not line.startswith('"') and not (match and match[1] == "msgstr"):
            end()
            fuzzy, field = False, None
        if line.startswith("#,"):
            fuzzy = fuzzy or "fuzzy" in line
        elif match:
            field = match[1] + (match[2] or "")
            entry[field] = ast.literal_eval(match[3])
        elif line.startswith('"') and field is not None:
            entry[field] += ast.literal_eval(line)
    end()
    return found


def plain(message):
    """Returns a message without tags, entities and mnemonics, with X for each placeholder, and with single spaces."""
    text = html.unescape(TAG.sub(" ", message))
    return " ".join(PLACEHOLDER.sub("X", text).replace("&", "").replace("`", "").replace("**", "").split())


def code(source):
    """Returns Python source code with one tab for each step of the indentation, and without empty lines and the blanks at ends of lines."""
    found = []
    for line in source.splitlines():
        body = line.strip()
        if body:
            width = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip())
            found.append("\t" * (width // 4) + body)
    return "\n".join(found)
