"""How the games are explained: the wordings that demonstrations use, and others that none of them ever does.

A model that learns from one frozen wording no longer reads it, and fails when it is put otherwise; many wordings cure
that (arXiv 2510.00237). Every wording says the whole rule, also what J, Q and K count: that may change.
"""

from dft_mm.evaluate.games.game import Wordings

GENERAL_POINTS = Wordings(
    seen=(
        "Play the game of {target} points.\n{shown}\nA counts as 1, J as {jack}, Q as {queen}, K as {king}, and every "
        "other card as its number. Write an expression that equals {target}. It must use the number of each of the "
        "{count} cards exactly once, and only + - * / and parentheses. End with a line that begins with `Answer:` and "
        "gives the expression.",
        "{shown}\nMake {target} from these {count} cards. An ace is worth 1, a jack {jack}, a queen {queen}, a king "
        "{king}; the others are worth what they show. Use every card once, with + - * / and parentheses. Your last "
        "line must be `Answer:` and the expression.",
        "Here is a hand of {count} cards.\n{shown}\nFind a way to reach exactly {target} with addition, subtraction, "
        "multiplication and division (+ - * /), each card being used one time. Values: A = 1, J = {jack}, Q = {queen}, "
        "K = {king}. Close with `Answer:` followed by your expression in numbers.",
        "You are given {count} playing cards and a target of {target}.\n{shown}\nThe value of A is 1; the values of J, "
        "Q and K are {jack}, {queen} and {king}. Combine all the values, none of them twice, by + - * / and "
        "parentheses so that the result is the target. Put the expression after `Answer:` on the last line.",
        "Target: {target}\n{shown}\nRules: (1) each card is used exactly once; (2) allowed are + - * / and "
        "parentheses; (3) A is 1, J is {jack}, Q is {queen}, K is {king}. Give the expression in a final line that "
        "starts with `Answer:`.",
        "Can you get {target} out of the following {count} cards?\n{shown}\nCount jacks as {jack}, queens as {queen}, "
        "kings as {king} and aces as 1. No card may be left out or used again, and only + - * / and parentheses may "
        "stand between the numbers. Finish by writing `Answer:` and then the expression.",
        "{shown}\nUsing each card's value one time, build an arithmetic expression with the value {target}. K stands "
        "for {king}, Q for {queen}, J for {jack} and A for 1. Operators: + - * /, parentheses as needed. On the last "
        "line write `Answer:` and the expression.",
        "A puzzle: {count} cards, four operations (+ - * /), and the number {target} to be reached.\n{shown}\nIn this "
        "puzzle J means {jack}, Q means {queen}, K means {king}, A means 1. All cards are needed, each once. State "
        "your expression at the end, after `Answer:`.",
    ),
    unseen=(
        "Someone deals you {count} cards and bets that you cannot turn them into {target}.\n{shown}\nProve them wrong: "
        "join the values of all cards, each taken a single time, with the signs + - * / and brackets. For this bet the "
        "king is {king}, the queen is {queen}, the jack is {jack}, and the ace is 1. Conclude with `Answer:` and what "
        "you found.",
        "Task: arithmetic with cards. Wanted result: {target}. Picture cards score {jack} (J), {queen} (Q) and {king} "
        "(K); an A scores 1.\n{shown}\nDevise a formula in which the score of every card occurs precisely one time. "
        "Nothing but + - * / and brackets may connect them. The reply's closing line reads `Answer:` plus the formula.",
        "Please write {target} as a calculation.\n{shown}\nThe calculation has to contain the points of all {count} "
        "cards and no further number. Points: ace 1; jack {jack}; queen {queen}; king {king}; pip cards their pips. "
        "Permitted: + - * / and round brackets. Deliver it behind the word `Answer:` at the very end.",
        "Let J := {jack}, Q := {queen}, K := {king} and A := 1.\n{shown}\nYour job is to arrange these {count} values "
        "into a formula that evaluates to {target}, spending each value once, by means of + - * / and brackets. "
        "Report the formula in numerals at the bottom, introduced by `Answer:`.",
    ),
)

SOKOBAN = Wordings(
    seen=(
        "Solve this Sokoban board.\n{shown}\nThe moves are U (up), D (down), L (left) and R (right). The player who "
        "walks into a box pushes it one cell further, if that cell is free of walls and boxes. Bring every box onto a "
        "goal. End with a line that begins with `Answer:` and gives the moves, such as `Answer: UDLR`.",
        "{shown}\nThis is a game of Sokoban. Push all boxes onto goals by moving the player: U for up, D for down, L "
        "for left, R for right. Boxes cannot be pulled, and only one can be pushed at a time. Your last line must be "
        "`Answer:` and the moves in a row.",
        "Find the moves that win the following Sokoban game.\n{shown}\nWrite U, D, L, R for a step up, down, left, "
        "right. A step against a box moves the box, too, unless a wall or another box is behind it; then the step is "
        "not allowed. Close with `Answer:` followed by the letters.",
        "You control the player of a box-pushing game.\n{shown}\nThe game is won when each box is on a goal. Steps are "
        "written U, D, L and R (up, down, left, right); a box in the way is pushed along if there is room. Put your "
        "steps after `Answer:` on the last line.",
        "Goal: every box on a goal.\n{shown}\nRules: (1) U, D, L, R move the player up, down, left, right; (2) walls "
        "cannot be entered; (3) a box is pushed by walking into it, never pulled, and never against a wall or a second "
        "box. Give the moves in a final line that starts with `Answer:`.",
        "Can you solve this Sokoban?\n{shown}\nAnswer with a sequence of the letters U (up), D (down), L (left), R "
        "(right). The player pushes a box by stepping onto its cell, provided that the next cell is free. Finish by "
        "writing `Answer:` and then the sequence.",
        "{shown}\nPlan a path for the player so that all boxes end on goals. The letters U, D, L and R stand for one "
        "step up, down, left and right; stepping into a box shoves it one cell, and that cell must be empty floor or a "
        "goal. On the last line write `Answer:` and the letters of your plan.",
        "Here is a Sokoban level.\n{shown}\nSolve it with steps up (U), down (D), left (L) and right (R). One box "
        "at a time can be pushed, in the direction of the step; a step that is blocked makes the solution invalid. "
        "State all steps at the end, after `Answer:`.",
    ),
    unseen=(
        "A warehouse keeper has to store the goods.\n{shown}\nDirect the keeper with the commands U (north), D "
        "(south), L (west) and R (east) until no box is away from a goal. Boxes slide one field ahead of the keeper "
        "when there is a vacant field; otherwise the command is illegal. Conclude with `Answer:` and your commands.",
        "Task: transport puzzle. Permitted inputs: L = one field to the left, R = one field to the right, U = one "
        "field upwards, D = one field downwards.\n{shown}\nRunning against a box displaces it if the field beyond is "
        "vacant. Ensure that all boxes finally rest on goals. The reply's closing line reads `Answer:` plus the "
        "inputs.",
        "Please work out how the player gets the boxes to where they belong, the goals.\n{shown}\nNotation: each "
        "letter of U/D/L/R is a single stride upward/downward/leftward/rightward. Only pushing is possible, and just "
        "one box per stride. Deliver the letters behind the word `Answer:` at the very end.",
        "Suppose you stand where the player stands.\n{shown}\nWhich keys do you press to park the boxes on the goals? "
        "The keys are R, L, D, U, for right, left, down, up. You cannot go through walls, drag a box backwards, or "
        "shift two of them together. Report the keys at the bottom, introduced by `Answer:`.",
    ),
)
