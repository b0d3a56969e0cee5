"""The parts of ``stdpipe`` that skyloom serves: image subtraction, and the point spread functions that it needs."""
