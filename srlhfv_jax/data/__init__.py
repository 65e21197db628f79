"""Files of rows to host batches. NumPy only: nothing here imports jax.

sources        rows by number: of files (`tables`) of a split (`splits`), or of a TFDS folder (`tfds_folder`)
rows           the canonical Example, and what must hold of it
layouts/       raw row -> Example; the only files that know column names
cells          texts and pictures of a raw row
places         data of the hub, of buckets and behind addresses -> files here
columns        columns under other names
mixtures       several sources in one path, with weights
classes        shares of classes of rows, by a column
memory         rows that are at hand in Python
given          rows that a command is given by flags
labels         spellings of labels
literal        text of rows that must not become a special token
drops          named reasons for which a row is left out
images         bytes of a picture, from wherever a row points
picture_cache  patches that were cut before
families       what is of one model family: how its pictures become patches and placeholders
pictures       bytes -> patches, as a checkpoint's processor cuts them
chat           conversation -> prompt text, by the checkpoint's own `templates` (`template_trial`: whether one ends)
frames         all that a template writes around the texts of a conversation
tokens         Example -> token ids; every placeholder and length is checked here, before step 0
answers        every answer of a conversation as a row of its own
guard_rows     rows with severities and categories (`taxonomies`)
targets        what a supervised row teaches, where it is not its own answer
blind          answers given without the picture, as further losers of pairs
preferences    who wins a pair, where nothing else of its preferences is read
uses           what each use needs of a row; the rows that have it as token ids
collate        token ids -> the padded arrays of batches.py
loader         shuffled, sharded, prefetched, resumable batches
summary        numbers of a data set, for `inspection` (`srlhfv data inspect`)
tfds/          builders that write TFDS folders without TensorFlow
quickstart/    the embedded task
"""
