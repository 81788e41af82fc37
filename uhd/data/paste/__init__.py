"""Cut-out targets pasted on backgrounds: a labelled data set from two folders (`python -m uhd.data.paste --help`)."""
