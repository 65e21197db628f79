"""From a raw row of any layout that people have to the canonical `Example`. The only files that know column names.

layout               the record of one layout: its columns and its reader
turns                messages of any spelling -> turns and pictures
beavertails_v, beavertails_v_qa, pku_saferlhf, beavertails, openai_moderation
                     data sets with safety labels, one a file
preference           pairs of which one answer was chosen
answers              one answer to a prompt, with a label or without
messages             whole conversations
plain                our own rows
table                all of them in order; recognises the one of a file

In every layout a label may be text, a number or true and false, a table of flags JSON text, and an id "tie": labelled, and neither
response is preferred. Rows with the same question and different images are different rows. Images are fetched through a function,
so that nothing here needs folders or codecs.
"""

from srlhfv_jax.data.layouts.layout import Layout, Reading
from srlhfv_jax.data.layouts.table import LAYOUTS, detect, named, read, unread, unused

__all__ = ["LAYOUTS", "Layout", "Reading", "detect", "named", "read", "unread", "unused"]
