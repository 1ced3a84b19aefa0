"""Files of pictures, films and sound: readers, writers, metadata, and what is drawn for people."""
