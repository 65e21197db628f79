"""TFDS builders that write ArrayRecord without TensorFlow, and read again by `data/sources.py` row by row.

    beavertails_v, beavertails_v_qa, beavertails, pku_saferlhf    from files the user downloaded (TFDS calls it the manual folder)
    local_files                                                   what these four share
    look_before_you_answer                                        the embedded task, generated
    records                                                       columns -> features, files -> splits, rows -> records
    prepare                                                       `srlhfv data prepare`: the builder of a name or a layout

Importing `tensorflow_datasets` does not import TensorFlow, and nothing called here does.
"""
