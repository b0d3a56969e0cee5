"""The parts of ``stdpipe`` that skyloom serves: image subtraction."""
