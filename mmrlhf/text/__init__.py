"""English text: word lists, answers, COCO objects, plurals and lemmas."""
