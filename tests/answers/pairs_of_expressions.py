"""Answers about all but numbers and what is said to equal them, labelled from the mathematics.

{kind: [(gold, equal predictions, different predictions), ...]}
"""

EXPRESSIONS = {
    "expressions": [
        (
            "(x-2)(x+5)",
            ["x^2+3x-10", "(x+5)(x-2)", "x(x+3)-10", "x**2 + 3*x - 10", "(x-2)\\cdot(x+5)"],
            ["x^2-3x-10", "x^2+3x+10", "(y-2)(y+5)", "2, -5", "x^2+3x"],
        ),
        (
            "\\frac{a}{b}",
            ["a/b", "ab^{-1}", "\\frac{a^2}{ab}", "a \\div b"],
            ["b/a", "ab", "\\frac{a}{c}", "a-b"],
        ),
        (
            "3x^2y",
            ["3yx^2", "3 \\cdot x^2 \\cdot y", "3x^{2}y", "x\\cdot 3xy"],
            ["3x^{2y}", "3xy^2", "3xy", "x^2y"],
        ),
        ("|x|", ["\\sqrt{x^2}", "|-x|", "\\left|x\\right|", "abs(x)"], ["x", "-x", "x^2", "|y|"]),
        (
            "2^{n+1}-1",
            ["2\\cdot 2^n-1", "2^{1+n} - 1", "-1+2^{n}+2^{n}"],
            ["2^n+1-1", "2^{n}-1", "2^{n+1}", "4^n-1"],
        ),
        (
            "\\frac{1}{x}+\\frac{1}{y}",
            ["\\frac{x+y}{xy}", "x^{-1}+y^{-1}"],
            ["\\frac{2}{x+y}", "\\frac{1}{x+y}", "\\frac{1}{xy}"],
        ),
        (
            "\\alpha^2-\\beta",
            ["-\\beta+\\alpha^2", "\\alpha\\cdot\\alpha-\\beta"],
            ["\\beta^2-\\alpha", "a^2-b", "\\alpha^2+\\beta"],
        ),
        ("x_1+x_2", ["x_2+x_1", "x_{1}+x_{2}"], ["x_1+x_3", "2x", "x_1x_2"]),
        ("n!", ["n\\cdot (n-1)!", "\\frac{(n+1)!}{n+1}"], ["n", "(n-1)!", "n^n"]),
        (
            "\\binom{n}{2}",
            ["\\frac{n(n-1)}{2}", "\\frac{n!}{2(n-2)!}", "{n \\choose 2}"],
            ["\\frac n2", "\\binom{n}{3}", "\\frac{n(n+1)}{2}"],
        ),
    ],
    "equations": [
        (
            "x = 9",
            ["9", "x=9", "9 = x", "2x = 18", "x = \\frac{18}{2}", "x = 3^2 = 9"],
            ["x = -9", "x=9, x=8", "9 = 8", "x > 9", "x \\ne 9"],
        ),
        (
            "y = \\frac{x}{2} - 3",
            ["2y = x - 6", "x - 2y = 6", "y=\\frac12x-3", "x-2y-6=0"],
            ["y=\\frac{x}{2}+3", "y = 2x-3", "y=\\frac{x-3}{2}", "-3"],
        ),
        (
            "x^2+y^2=25",
            ["y^2+x^2-25=0", "2x^2+2y^2=50", "25=x^2+y^2"],
            ["25", "5", "x^2+y^2=5", "x^2-y^2=25", "x^2+y^2"],
        ),
        (
            "f(x) = x^3 - x",
            ["x^3-x", "f(x)=x(x^2-1)", "f(x)=x(x-1)(x+1)"],
            ["x^3+x", "f(x)=x^3", "f(x) = x-x^3"],
        ),
        (
            "a=3, b=7",
            ["b = 7, a = 3", "a=3 \\text{ and } b=7", "3, 7", "a = 3,\\ b = 7"],
            ["a=7, b=3", "a=3", "7, 3", "a=3,b=7,c=1"],
        ),
    ],
    "inequalities and intervals": [
        (
            "x > \\frac{3}{2}",
            ["\\frac32 < x", "2x > 3", "x > 1.5", "(\\frac{3}{2},\\infty)", "-x < -1.5"],
            ["x \\ge 1.5", "x < 1.5", "y > \\frac32", "1.5", "[1.5, \\infty)"],
        ),
        (
            "-4 \\le t < 9",
            ["9 > t \\geq -4", "[-4, 9)", "t \\in [-4,9)", "-4 <= t < 9"],
            ["-4 < t < 9", "-4 \\le t \\le 9", "t < 9", "(-4, 9]"],
        ),
        (
            "(2, 5]",
            ["x\\in(2,5]", "\\left( 2, 5 \\right]", "2 < x \\le 5", "(2,3]\\cup[3,5]"],
            ["(2,5)", "[2,5]", "[2,5)", "(2,6]", "2,5"],
        ),
        (
            "(-\\infty,-1)\\cup(1,\\infty)",
            [
                "(1,\\infty)\\cup(-\\infty,-1)",
                "x<-1 \\text{ or } x>1",
                "(-∞,-1) ∪ (1,+∞)",
                "(-inf,-1) \\cup (1, inf)",
            ],
            ["(-1,1)", "(-\\infty,-1]\\cup[1,\\infty)", "(1,\\infty)", "\\mathbb{R}"],
        ),
        (
            "\\mathbb{R}\\setminus\\{4\\}",
            [
                "x \\ne 4",
                "(-\\infty,4)\\cup(4,\\infty)",
                "x \\neq 4",
                "\\mathbb{R} \\backslash \\{4\\}",
            ],
            ["\\mathbb{R}", "\\{4\\}", "x\\ne -4", "(4,\\infty)"],
        ),
        (
            "x + 2y < 6",
            ["6 > 2y + x", "2x+4y<12", "-x-2y > -6"],
            ["x+2y > 6", "x + 2y \\le 6", "-x-2y < -6", "x+2y = 6", "2x+y<6"],
        ),
        (
            "[0, 2\\pi)",
            ["\\left[0,2\\pi\\right)", "0\\le x<2\\pi"],
            ["[0,2\\pi]", "(0,2\\pi)", "[0,2)"],
        ),
    ],
    "tuples": [
        (
            "(2, -3)",
            ["(2,-3)", "\\left(2,-3\\right)", "(x,y)=(2,-3)", "(\\frac{4}{2}, -3.0)", "x=2, y=-3"],
            ["(-3, 2)", "(2,3)", "(2,-3,0)", "2-3", "[2,-3]"],
        ),
        (
            "(\\sqrt{2}, \\pi, 0)",
            ["(2^{1/2}, \\pi, 0)", "( \\sqrt2 , pi , 0 )"],
            ["(\\sqrt{2},\\pi)", "(\\pi,\\sqrt2,0)", "(1.41,3.14,0)"],
        ),
        (
            "(1,2),(3,4)",
            ["(3,4),(1,2)", "\\{(1,2),(3,4)\\}", "(1,2) \\text{ and } (3,4)"],
            ["(1,2)", "(2,1),(3,4)", "(1,2,3,4)", "1,2,3,4"],
        ),
        (
            "(0, \\pm 5)",
            ["(0,5), (0,-5)", "(0,-5) \\text{ or } (0,5)"],
            ["(0,5)", "\\pm 5", "(5,0),(-5,0)"],
        ),
    ],
    "lists, sets, several roots": [
        (
            "-1, 4",
            [
                "4, -1",
                "\\{-1,4\\}",
                "x=-1, x=4",
                "x = 4 \\text{ or } x = -1",
                "4 and -1",
                "-1 or 4",
                "-1;4",
            ],
            ["-1", "4", "1, -4", "-1,4,5", "3", "-14", "x=-1 \\text{ or } y = 4"],
        ),
        (
            "\\{2,3,5,7\\}",
            ["2,3,5,7", "\\{7,5,3,2\\}", "\\left\\{2,3,5,7\\right\\}", "\\{2,2,3,5,7\\}"],
            ["\\{2,3,5\\}", "2357", "\\{2,3,5,7,11\\}", "\\{1,2,3,5,7\\}"],
        ),
        (
            "1 \\pm \\sqrt{6}",
            [
                "1+\\sqrt6, 1-\\sqrt6",
                "x = 1 \\pm \\sqrt{6}",
                "\\{1-\\sqrt{6},1+\\sqrt{6}\\}",
                "1 ± √6",
                "\\frac{2\\pm\\sqrt{24}}{2}",
            ],
            ["1+\\sqrt{6}", "\\sqrt6 \\pm 1", "1\\pm 6", "-1\\pm\\sqrt6"],
        ),
        ("\\emptyset", ["\\varnothing", "\\{\\}", "∅"], ["0", "\\{0\\}", "\\{\\emptyset\\}"]),
        ("x=0,\\; x = \\pm 3", ["-3,0,3", "x=0, 3, -3", "\\{0,3,-3\\}"], ["x=\\pm 3", "0", "0, 3"]),
    ],
    "matrices and vectors": [
        (
            "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
            [
                "\\begin{bmatrix} 1 & 2 \\\\ 3 & 4 \\end{bmatrix}",
                "\\begin{pmatrix}1&\\frac42\\\\3&4\\\\\\end{pmatrix}",
                "\\left(\\begin{matrix}1&2\\\\3&4\\end{matrix}\\right)",
            ],
            [
                "\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}",
                "\\begin{pmatrix}1&2&3&4\\end{pmatrix}",
                "-2",
                "\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}",
            ],
        ),
        (
            "\\langle 3, -1, 2\\rangle",
            [
                "\\left\\langle 3,-1,2 \\right\\rangle",
                "(3,-1,2)",
                "\\begin{pmatrix}3\\\\-1\\\\2\\end{pmatrix}",
            ],
            ["\\langle 3,1,2\\rangle", "\\langle 2,-1,3\\rangle", "\\sqrt{14}"],
        ),
        (
            "\\begin{pmatrix}\\frac12\\\\0\\end{pmatrix}",
            ["\\begin{bmatrix}0.5\\\\0\\end{bmatrix}"],
            [
                "\\begin{pmatrix}\\frac12&0\\end{pmatrix}",
                "\\begin{pmatrix}0\\\\\\frac12\\end{pmatrix}",
                "\\frac12",
            ],
        ),
    ],
    "complex numbers": [
        (
            "3-4i",
            ["-4i+3", "3 - 4 i", "5e^{-i\\arctan(4/3)}", "(2-i)^2", "3-4\\mathrm{i}"],
            ["3+4i", "5", "-1", "(3,-4)", "4-3i"],
        ),
        (
            "\\frac{1+i\\sqrt{3}}{2}",
            ["e^{i\\pi/3}", "\\frac12+\\frac{\\sqrt3}{2}i", "\\cos 60^\\circ+i\\sin 60^\\circ"],
            ["e^{-i\\pi/3}", "\\frac{1+\\sqrt3}{2}", "1", "e^{i\\pi/6}"],
        ),
        ("2i", ["\\sqrt{-4}", "(1+i)^2", "i+i"], ["2", "-2i", "\\pm 2i", "2x"]),
    ],
    "bases, times, ratios": [
        ("1203_5", ["1203_{5}", "(1203)_5", "1203"], ["1203_4", "178", "1302_5", "1203_{6}"]),
        (
            "6:45",
            ["6:45", "6:45\\text{ p.m.}", "6 : 45", "6:45 PM"],
            ["6:54", "5:45", "645", "6.45"],
        ),
        ("4:30", ["4:30 am", "4:30"], ["8:60", "2:15", "9/2"]),
        ("2:5", ["2:5", "4:10", "2 : 5"], ["5:2", "25", "2:5:1", "2.5"]),
    ],
    "words and choices": [
        (
            "\\text{(D)}",
            ["D", "(D)", "\\textbf{(D)}", "\\text{D}", "D."],
            ["E", "4", "A, B, C, D, E", "(C)", "A or D"],
        ),
        (
            "\\text{Friday}",
            ["Friday", "friday", "\\text{friday}", "Friday."],
            ["Saturday", "5", "Friday or Saturday", "not Friday", "F"],
        ),
        ("even", ["\\text{even}", "Even"], ["odd", "neither even nor odd", "2", "eve"]),
        ("\\text{No}", ["no", "No."], ["yes", "none", "no or yes", "0"]),
        (
            "parallel lines",
            ["\\text{parallel lines}", "Parallel lines"],
            ["lines", "perpendicular lines", "parallel"],
        ),
    ],
    "infinity": [
        (
            "\\infty",
            ["+\\infty", "∞", "oo", "infinity", "\\text{infinity}"],
            ["-\\infty", "10^{999}", "0", "1/0", "8"],
        ),
    ],
    "tricks": [
        (
            "8",
            [],
            [
                "1,2,3,4,5,6,7,8,9",
                "8 or 9",
                "\\pm 8",
                "8, -8",
                "7 < 8",
                "8 = 9",
                "[8,9]",
                "8 8",
                "\\text{8 or 9}",
                "What is 5+3? 8",
                "x+8",
                "8/0",
                "n",
                "any number",
                "8==8",
                "range(9)[8]",
                "__import__('os').getpid()",
                "\\boxed{}",
                "{8",
                "8}",
                "8)(",
                "\\frac{8}",
                "9^{9^9}",
                "8!",
                "8_9",
                "\\{7,8\\}",
                "x=8=9",
                "8?9",
                "8#",
                "\\infty",
                "nan",
            ],
        ),
        ("9^{9^9}", ["9^{9^{9}}", "9^{387420489}"], ["9^{9^8}", "9^9", "\\infty", "9^{9^9}+x"]),
        (
            "\\frac{1}{300!}",
            ["\\frac{301}{301!}", "1/300!"],
            ["\\frac{1}{301!}", "0", "\\frac{1}{299!}", "-\\frac{1}{300!}"],
        ),
        ("1-10^{-40}", [], ["1", "1-10^{-41}", "1+10^{-40}"]),
    ],
}
