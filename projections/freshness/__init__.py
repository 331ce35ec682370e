"""How new the views are, and what they lack.

* An offset is *reached* once a reader has read every record before it; a `Frontier` has those of one reader.
* The views are *folded* up to an offset once their documents show every record before it (`Folded`). Two know how far:
  the host itself (`projections/hosts/local.py`), and `Watermarks`, which asks the store that another process saves to.
* The *tail* is the end of the log as this process reads it (`Tail`); its *unfolded* records are those that the views
  may still lack (`Unfolded`).
* `CurrentViews` answers with both: a stored document and the unfolded records of its key.
"""
