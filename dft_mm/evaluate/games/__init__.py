"""Reasoning games with a known rule and a sure verdict, for questions that are unlike those learned from.

`general_points` (four cards make 24) is the game of "SFT Memorizes, RL Generalizes" (arXiv 2501.17161); with `sokoban`
it is that of arXiv 2510.00237, which asks the same of wordings, of chain of thought and of harder instances.
"""

from dft_mm.evaluate.games.play import make, verify

__all__ = ["make", "verify"]
