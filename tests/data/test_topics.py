"""The Python language reference as prose."""

import re
from pydoc_data.topics import topics

from ugap.data.topics import MIN_CHARACTERS, prose, reference_texts

TOPIC = """The "with" statement
********************

The "with" statement is used to wrap the execution of a block with non-
local exits.  It is old [1].

   with_stmt ::= "with" item
               | more

The execution proceeds as follows. Here is an
example:

   with EXPRESSION as TARGET:
       SUITE

   more_code()

* If the suite was exited, and
  the reason was fine, it goes on.

     value = 1

* Else:

Note:

  The names are
  looked up once.

Changed in version 3.1: Support for multiple expressions.

object.__enter__(self)

   Enter the runtime context. Its result
   is bound:

      x = 1

See also:

  **PEP 343** - The “with” statement
     The specification.

+---------+----------+
| a table | of cells |
+---------+----------+

None
   This type has a single value.

The end comes now.

-[ Footnotes ]-

[1] A note that nobody reads here.
"""


def test_prose_of_a_topic():
    assert prose(TOPIC) == [
        'The "with" statement is used to wrap the execution of a block with non-local exits. It is old.',
        "The execution proceeds as follows.",
        "* If the suite was exited, and the reason was fine, it goes on.",
        "Note: The names are looked up once.",
        "Enter the runtime context.",
        "This type has a single value.",
        "The end comes now.",
    ]


def test_a_paragraph_is_kept_once_in_the_shortest_topic():
    shared, own = "One sentence that two topics share. " * 3, "Another one that is long. " * 9
    texts = reference_texts({"long": f"{shared}\n\n{own}", "short": shared, "tiny": "Too short to be kept."}, 50)
    assert list(texts) == ["long", "short"]
    assert texts["short"] == shared.strip()
    assert texts["long"] == own.strip()


def test_the_reference_of_this_python():
    texts = reference_texts(topics)
    assert len(texts) >= 30
    assert list(texts) == sorted(texts)
    assert {"assignment", "calls", "comparisons", "import", "objects", "types"} <= texts.keys()
    paragraphs = [paragraph for text in texts.values() for paragraph in text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs))
    for name, text in texts.items():
        assert len(text) >= MIN_CHARACTERS, name
        assert not re.search(r"::=|^>>>|\*\*\*|====|  |\t|\r|-\[", text, re.MULTILINE), name
        assert text.replace("\n", "").isprintable(), name
    long = [paragraph for paragraph in paragraphs if len(paragraph) > 75]  # they were wrapped at 70 columns
    assert len(long) > 0.75 * len(paragraphs)
