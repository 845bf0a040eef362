"""English text: reading answers, COCO objects, plurals and lemmas."""
