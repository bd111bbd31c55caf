"""All tasks by name. A benchmark is one entry here, or in the table of its kind."""

from dft_mm.evaluate.task import Task
from dft_mm.evaluate.tasks.digits import DIGITS
from dft_mm.evaluate.tasks.games import GAME_TASKS
from dft_mm.evaluate.tasks.mathematics import MATHEMATICS
from dft_mm.evaluate.tasks.programs import PROGRAMS
from dft_mm.evaluate.tasks.vlm import VISUAL_MATHEMATICS

TASKS: dict[str, Task] = {"digits": DIGITS, **MATHEMATICS, **PROGRAMS, **GAME_TASKS, **VISUAL_MATHEMATICS}
