"""The judging methods, one file each: ``find(engine, questions)`` gives a finding for each question, in order."""
