"""Standard ODE test problems with known end values, as fields of torch tensors in float64.

`NONSTIFF` are the 25 of DETEST (Hull, Enright, Fellen, Sedgwick 1972, SIAM J. Numer. Anal. 9), the Arenstorf orbit and
the Pleiades (Hairer, Norsett, Wanner I, II.0 and II.10) and the Lotka-Volterra equations; `STIFF` are van der Pol's
oscillator, Robertson, OREGO, HIRES and POLLUTION (Hairer, Wanner II, IV.10; the IVP test set of Bari and CWI, whose
end values these are).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """dy/dt = field(t, y) from y0 at t = 0 to `t_end`, where y is `reference`.

    Args:
        name: of the problem.
        field: gives dy/dt, (n,), from t, (), and y, (n,).
        y0, reference: states, (n,), float64.
        t_end: end time.
        stiff: whether explicit methods creep.
        scale: size below which an entry does not matter: solve it with atol = scale * rtol.
        published: whether the reference was published; else it was computed (see `REFERENCES`).
    """

    name: str
    field: Field
    y0: Tensor
    t_end: float
    reference: Tensor
    stiff: bool = False
    scale: float = 1.0
    published: bool = False

    def error(self, y: Tensor) -> float:
        """Largest |y - reference| / (scale + |reference|); with atol = scale * rtol in the units of rtol."""
        return float(((y - self.reference).abs() / (self.scale + self.reference.abs())).max())


def vector(*values: float) -> Tensor:
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


# end values by SciPy's DOP853 with rtol = 3e-14, atol = 1e-15; with shorter steps and a smaller atol they change by
# 1e-12 at most, which is what the problems amplify rounding to (A5, B4, C5, D1 to D5, the Pleiades: 2e-13 and more)
REFERENCES: dict[str, tuple[float, ...]] = {
    "lotka_volterra": (
        1.02634476757509,
        0.9096910781360661,
    ),
    "pleiades": (
        0.37061391439570424,
        3.237284092057292,
        -3.222559032418379,
        0.6597091455778692,
        0.342558170715328,
        1.56217210140064,
        -0.7003092922210165,
        -3.9434375855155506,
        -3.2713809739724136,
        5.225081843455174,
        -2.5906124349774884,
        1.1982136933927638,
        -0.24296823449364072,
        1.0914492404289813,
        3.417003806312976,
        1.3545845016255353,
        -2.590065597810525,
        2.0250537347146795,
        -1.155815100161936,
        -0.8072988170222084,
        0.5952396354216771,
        -3.7412449612338623,
        0.37734596857523306,
        0.9386858869538552,
        0.36679222272040274,
        -0.3474046353803498,
        2.3449154481807617,
        -1.9470204342632267,
    ),
    "A1": (2.061153639588317e-09,),
    "A2": (0.2182178902359925,),
    "A3": (2.4916502718505784,),
    "A4": (17.730166481314797,),
    "A5": (-0.7887826688962134,),
    "B1": (
        0.6761876008577026,
        0.18608160996400375,
    ),
    "B2": (
        1.0000000010305778,
        0.9999999999999996,
        0.9999999989694235,
    ),
    "B3": (
        2.0611536787530603e-09,
        0.052572280220485115,
        0.9474277177183612,
    ),
    "B4": (
        0.9826950927999807,
        2.198447081693773,
        0.912945250727777,
    ),
    "B5": (
        -0.9396570798729076,
        -0.34211777540009314,
        0.7414126596199988,
    ),
    "C1": (
        2.061153622683806e-09,
        4.122307245144036e-08,
        4.122307245011298e-07,
        2.7482048299579933e-06,
        1.3741024149662158e-05,
        5.4964096598416384e-05,
        0.00018321365532777885,
        0.0005234675866506823,
        0.001308668966627037,
        0.9979127409508655,
    ),
    "C2": (
        2.0611536424594335e-09,
        2.0611536382110562e-09,
        2.061153633962689e-09,
        2.061153629714283e-09,
        2.0611536254659417e-09,
        2.061153621217588e-09,
        2.0611536169690664e-09,
        2.061153612720705e-09,
        2.0611536084751155e-09,
        0.9999999814496169,
    ),
    "C3": (
        0.002948119211022771,
        0.005635380154845409,
        0.007829072515927118,
        0.00934825790859563,
        0.010079436103019772,
        0.009982674171429427,
        0.009088693332765284,
        0.007489115195185059,
        0.005322964130952677,
        0.0027624343790295246,
    ),
    "C4": (
        0.0031241114537222648,
        0.006015416842151559,
        0.008470021834843806,
        0.010336829317333983,
        0.011532495728739114,
        0.012045495257378944,
        0.011929570680152022,
        0.011288832071111206,
        0.010258045013909894,
        0.008982017581934261,
        0.007597500902492831,
        0.006219920556825433,
        0.0049359163410094805,
        0.0038014325442562755,
        0.002844213677587875,
        0.002069123394222543,
        0.0014646872828437602,
        0.0010095452639410042,
        0.0006779354330226366,
        0.00044378152691183927,
        0.0002833264542939173,
        0.00017650057987971446,
        0.0001073342592697546,
        6.374497601779255e-05,
        3.698645309705118e-05,
        2.0974668326438668e-05,
        1.1629567104122426e-05,
        6.3067104057789184e-06,
        3.3462864308646374e-06,
        1.7377600741816891e-06,
        8.835366904261642e-07,
        4.399520411122433e-07,
        2.1461818971524007e-07,
        1.0259812116572526e-07,
        4.807864068811887e-08,
        2.2091751524980784e-08,
        9.956251263299759e-09,
        4.4021936538455776e-09,
        1.910149382253193e-09,
        8.135892921668398e-10,
        3.4024771185857684e-10,
        1.3974856175125717e-10,
        5.638575302516486e-11,
        2.2354597074564387e-11,
        8.710498032522077e-12,
        3.336554272661059e-12,
        1.256679566063957e-12,
        4.654359042768671e-13,
        1.693559139720948e-13,
        5.996593785889097e-14,
        1.891330689622886e-14,
    ),
    "C5": (
        -4.792730224323951,
        -4.217310404035216,
        4.035559443262272,
        -29.987593263248446,
        -24.42125302518483,
        -2.4205507254489262,
        7.356202947498967,
        17.198655286705552,
        -4.107310937550929,
        23.81459045746554,
        -0.9212509306014642,
        3.2237859854212103,
        7.478910794233701,
        -0.9277008321754405,
        14.92096306951359,
        0.3499208963063419,
        -0.5237040978903326,
        -0.387528923733411,
        0.04133856546712442,
        -0.15119864573592062,
        -0.5748487687912843,
        -0.24930004635796643,
        0.056486032887678984,
        -0.2862393029841379,
        -0.24600688943187654,
        -0.25516940208791483,
        -0.08045341642044473,
        0.030236064721433437,
        -0.1183032405136207,
        -0.03189687411323879,
    ),
    "D1": (
        0.21988353520118747,
        0.9427076846339502,
        -0.978765984105843,
        0.3287977990965944,
    ),
    "D2": (
        -0.17770273571402173,
        0.9467784719903319,
        -1.0302941631932132,
        0.1211074890053092,
    ),
    "D3": (
        -0.5780432953032035,
        0.8633840009193264,
        -0.9595083730383255,
        -0.06504915126686871,
    ),
    "D4": (
        -0.9538990293397519,
        0.690740902422232,
        -0.8212674270891327,
        -0.15395742591162473,
    ),
    "D5": (
        -1.2952662509866884,
        0.40039389637927564,
        -0.6775390924713618,
        -0.1270838154277414,
    ),
    "E1": (
        0.14567236007283169,
        -0.09883500195574169,
    ),
    "E2": (
        2.0081497621749462,
        -0.04250887527321365,
    ),
    "E3": (
        -0.10041788586460747,
        0.24114001320959044,
    ),
    "E4": (
        33.95091444646555,
        0.27678226596728894,
    ),
    "E5": (
        14.117973905426222,
        2.4000000000000083,
    ),
}


# --- DETEST: A single equations, B small systems, C moderate systems, D orbits, E of second order


def _a5(t: Tensor, y: Tensor) -> Tensor:
    return (y - t) / (y + t)


def _b1(t: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind()
    return torch.stack([2 * (a - a * b), a * b - b])


def _b2(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind()
    return torch.stack([b - a, a - 2 * b + c, b - c])


def _b3(t: Tensor, y: Tensor) -> Tensor:
    a, b, _ = y.unbind()
    return torch.stack([-a, a - b * b, b * b])


def _b4(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind()
    r = torch.hypot(a, b)
    return torch.stack([-b - a * c / r, a - b * c / r, a / r])


def _b5(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind()
    return torch.stack([b * c, -a * c, -0.51 * a * b])


def linear(matrix: Tensor) -> Field:
    """dy/dt = matrix y."""
    return lambda t, y: matrix @ y


def _decay_chain(rates: Tensor) -> Tensor:
    """Each part decays into the next, the last one stays."""
    n = len(rates) + 1
    matrix = torch.zeros(n, n, dtype=torch.float64)
    parts = torch.arange(n - 1)
    matrix[parts, parts] = -rates
    matrix[parts + 1, parts] = rates
    return matrix


def _second_difference(n: int) -> Tensor:
    matrix = -2 * torch.eye(n, dtype=torch.float64)
    parts = torch.arange(n - 1)
    matrix[parts, parts + 1] = matrix[parts + 1, parts] = 1.0
    return matrix


SUN = 1.00000597682  # mass of the sun and the inner planets, in solar masses
GRAVITY = 2.95912208286
PLANETS = vector(0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778)
# x, y, z of Jupiter, Saturn, Uranus, Neptune, Pluto, then their velocities
C5_START = vector(
    *(3.42947415189, 6.64145542550, 11.2630437207, -30.1552268759, -21.1238353380),
    *(3.35386959711, 5.97156957878, 14.6952576794, 1.65699966404, 28.4465098142),
    *(1.35494901715, 2.18231499728, 6.27960525067, 1.43785752721, 15.3882659679),
    *(-0.557160570446, -0.415570776342, -0.325325669158, -0.024047625417, -0.176860753121),
    *(0.505696783289, 0.365682722812, 0.189706021964, -0.287659532608, -0.216393453025),
    *(0.230578543901, 0.169143213293, 0.087726532278, -0.117219543175, -0.014864789309),
)


def pulls(positions: Tensor) -> Tensor:
    """(q_j - q_i) / |q_j - q_i|^3 of positions (d, n): (d, i, j), 0 for i = j."""
    apart = positions[:, None, :] - positions[:, :, None]
    cubed = (apart.square().sum(0) + torch.eye(positions.shape[1], dtype=positions.dtype)) ** 1.5
    return apart / cubed


def _c5(t: Tensor, u: Tensor) -> Tensor:
    y = u[:15].reshape(3, 5)
    towards_sun = y / y.square().sum(0) ** 1.5
    others = pulls(y) @ PLANETS - (towards_sun @ PLANETS)[:, None] + towards_sun * PLANETS
    return torch.cat([u[15:], (GRAVITY * (others - (SUN + PLANETS) * towards_sun)).reshape(-1)])


def _orbit(t: Tensor, y: Tensor) -> Tensor:
    position = y[:2]
    return torch.cat([y[2:], -position / position.square().sum() ** 1.5])


def _e1(t: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind()
    s = t + 1
    return torch.stack([b, -(b / s + (1 - 0.25 / (s * s)) * a)])


def _e2(t: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind()
    return torch.stack([b, (1 - a * a) * b - a])


def _e3(t: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind()
    return torch.stack([b, a**3 / 6 - a + 2 * torch.sin(2.78535 * t)])


def _e4(t: Tensor, y: Tensor) -> Tensor:
    b = y[1]
    return torch.stack([b, 0.032 - 0.4 * b * b])


def _e5(t: Tensor, y: Tensor) -> Tensor:
    b = y[1]
    return torch.stack([b, torch.sqrt(1 + b * b) / (25 - t)])


def _first(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)[0]


def _detest() -> list[Problem]:
    chain = torch.arange(1, 10, dtype=torch.float64)
    systems: dict[str, tuple[Field, Tensor]] = {
        "A1": (lambda t, y: -y, vector(1)),
        "A2": (lambda t, y: -0.5 * y**3, vector(1)),
        "A3": (lambda t, y: y * torch.cos(t), vector(1)),
        "A4": (lambda t, y: y / 4 * (1 - y / 20), vector(1)),
        "A5": (_a5, vector(4)),
        "B1": (_b1, vector(1, 3)),
        "B2": (_b2, vector(2, 0, 1)),
        "B3": (_b3, vector(1, 0, 0)),
        "B4": (_b4, vector(3, 0, 0)),
        "B5": (_b5, vector(0, 1, 1)),
        "C1": (linear(_decay_chain(torch.ones_like(chain))), _first(10)),
        "C2": (linear(_decay_chain(chain)), _first(10)),
        "C3": (linear(_second_difference(10)), _first(10)),
        "C4": (linear(_second_difference(51)), _first(51)),
        "C5": (_c5, C5_START),
        "E1": (_e1, vector(0.6713967071418030, 0.09540051444747446)),
        "E2": (_e2, vector(2, 0)),
        "E3": (_e3, vector(0, 0)),
        "E4": (_e4, vector(30, 0)),
        "E5": (_e5, vector(0, 0)),
    }
    for i, eccentricity in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), 1):
        speed = math.sqrt((1 + eccentricity) / (1 - eccentricity))
        systems[f"D{i}"] = _orbit, vector(1 - eccentricity, 0, 0, speed)
    return [Problem(name, field, y0, 20.0, vector(*REFERENCES[name])) for name, (field, y0) in sorted(systems.items())]


# --- further problems that are not stiff

MOON = 0.012277471  # mass, of earth and moon together


def _arenstorf(t: Tensor, u: Tensor) -> Tensor:
    x, y, v, w = u.unbind()
    earth = ((x + MOON) ** 2 + y * y) ** 1.5
    moon = ((x - (1 - MOON)) ** 2 + y * y) ** 1.5
    return torch.stack([
        v,
        w,
        x + 2 * w - (1 - MOON) * (x + MOON) / earth - MOON * (x - (1 - MOON)) / moon,
        y - 2 * v - (1 - MOON) * y / earth - MOON * y / moon,
    ])  # fmt: skip


def _pleiades(t: Tensor, u: Tensor) -> Tensor:
    return torch.cat([u[14:], (pulls(u[:14].reshape(2, 7)) @ STARS).reshape(-1)])


STARS = torch.arange(1, 8, dtype=torch.float64)  # masses
PLEIADES_START = vector(
    *(3, 3, -1, -3, 2, -2, 2),
    *(3, -3, 2, 0, 0, -4, 4),
    *(0, 0, 0, 0, 0, 1.75, -1.5),
    *(0, 0, 0, -1.25, 1, 0, 0),
)
ARENSTORF_START = vector(0.994, 0, 0, -2.00158510637908252240537862224)  # to which the orbit returns


def _lotka_volterra(t: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind()
    return torch.stack([1.5 * a - a * b, a * b - 3 * b])


NONSTIFF = (
    *_detest(),
    Problem("Arenstorf", _arenstorf, ARENSTORF_START, 17.0652165601579625588917206249, ARENSTORF_START, published=True),
    Problem("Pleiades", _pleiades, PLEIADES_START, 3.0, vector(*REFERENCES["pleiades"])),
    Problem("Lotka-Volterra", _lotka_volterra, vector(1, 1), 10.0, vector(*REFERENCES["lotka_volterra"])),
)

# --- stiff problems


def _van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    a, b = y.unbind()
    return torch.stack([b, 1000 * (1 - a * a) * b - a])


def _robertson(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind()
    first, second, third = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return torch.stack([third - first, first - second - third, second])


def _orego(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind()
    return torch.stack([77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)])


HIRES = torch.tensor(
    [  # the linear part
        [-1.71, 0.43, 8.32, 0, 0, 0, 0, 0],
        [1.71, -8.75, 0, 0, 0, 0, 0, 0],
        [0, 0, -10.03, 0.43, 0.035, 0, 0, 0],
        [0, 8.32, 1.71, -1.12, 0, 0, 0, 0],
        [0, 0, 0, 0, -1.745, 0.43, 0.43, 0],
        [0, 0, 0, 0.69, 1.71, -0.43, 0.69, 0],
        [0, 0, 0, 0, 0, 0, -1.81, 0],
        [0, 0, 0, 0, 0, 0, 1.81, 0],
    ],
    dtype=torch.float64,
)
HIRES_INFLOW = vector(0.0007, 0, 0, 0, 0, 0, 0, 0)
HIRES_PAIR = vector(0, 0, 0, 0, 0, -280, 280, -280)


def _hires(t: Tensor, y: Tensor) -> Tensor:
    return HIRES @ y + HIRES_INFLOW + HIRES_PAIR * (y[5] * y[7])


# POLLUTION: 25 reactions of 20 species; rate constants, reactants (0: none), and for each species the reactions that
# make (+) and use (-) it, counted from 1
RATES = vector(
    *(0.35, 26.6, 12300.0, 8.6e-4, 8.2e-4, 15000.0, 1.3e-4, 24000.0, 16500.0, 9000.0, 0.022, 12000.0, 1.88),
    *(16300.0, 4.8e6, 3.5e-4, 0.0175, 1e8, 4.44e11, 1240.0, 2.1, 5.78, 0.0474, 1780.0, 3.12),
)
FIRST_REACTANT = (1, 2, 5, 7, 7, 7, 9, 9, 11, 11, 13, 10, 14, 1, 3, 4, 4, 16, 16, 17, 19, 19, 1, 19, 20)
SECOND_REACTANT = (0, 4, 2, 0, 0, 6, 0, 6, 2, 1, 0, 2, 0, 6, 0, 0, 0, 0, 0, 6, 0, 0, 4, 1, 0)
BALANCE = (
    (-1, -10, -14, -23, -24, 2, 3, 9, 11, 12, 22, 25),
    (-2, -3, -9, -12, 1, 21),
    (-15, 1, 17, 19, 22),
    (-2, -16, -17, -23, 15),
    (-3, 4, 4, 6, 7, 13, 20),
    (-6, -8, -14, -20, 3, 18, 18),
    (-4, -5, -6, 13),
    (4, 5, 6, 7),
    (-7, -8),
    (-12, 7, 9),
    (-9, -10, 8, 11),
    (9,),
    (-11, 10),
    (-13, 12),
    (14,),
    (-18, -19, 16),
    (-20,),
    (20,),
    (-21, -22, -24, 23, 25),
    (-25, 24),
)


def _pollution_field() -> Field:
    first, second = torch.tensor(FIRST_REACTANT), torch.tensor(SECOND_REACTANT)
    balance = torch.zeros(20, 25, dtype=torch.float64)
    for species, reactions in enumerate(BALANCE):
        for reaction in reactions:
            balance[species, abs(reaction) - 1] += math.copysign(1, reaction)
    one = torch.ones(1, dtype=torch.float64)

    def field(t: Tensor, y: Tensor) -> Tensor:
        z = torch.cat([one, y])
        return balance @ (RATES * z[first] * z[second])

    return field


def _pollution_start() -> Tensor:
    y0 = torch.zeros(20, dtype=torch.float64)
    y0[[1, 3, 6, 7, 8, 16]] = vector(0.2, 0.04, 0.1, 0.3, 0.01, 0.007)
    return y0


STIFF = (
    Problem(
        name="van der Pol, mu = 1000",
        field=_van_der_pol,
        y0=vector(2, 0),
        t_end=2000.0,
        reference=vector(0.1706167732170469e1, -0.8928097010248125e-3),
        stiff=True,
        published=True,
    ),
    Problem(
        name="Robertson",
        field=_robertson,
        y0=vector(1, 0, 0),
        t_end=1e11,
        reference=vector(0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050),
        stiff=True,
        scale=1e-8,
        published=True,
    ),
    Problem(
        name="OREGO",
        field=_orego,
        y0=vector(1, 2, 3),
        t_end=360.0,
        reference=vector(0.1000814870318523e1, 0.1228178521549917e4, 0.1320554942846706e3),
        stiff=True,
        scale=1e-6,
        published=True,
    ),
    Problem(
        name="HIRES",
        field=_hires,
        y0=vector(1, 0, 0, 0, 0, 0, 0, 0.0057),
        t_end=321.8122,
        reference=vector(
            *(0.7371312573325668e-3, 0.1442485726316185e-3, 0.5888729740967575e-4, 0.1175651343283149e-2),
            *(0.2386356198831331e-2, 0.6238968252742796e-2, 0.2849998395185769e-2, 0.2850001604814231e-2),
        ),
        stiff=True,
        scale=1e-4,
        published=True,
    ),
    Problem(
        name="POLLUTION",
        field=_pollution_field(),
        y0=_pollution_start(),
        t_end=60.0,
        reference=vector(
            *(0.5646255480022769e-1, 0.1342484130422339, 0.4139734331099427e-8, 0.5523140207484359e-2),
            *(0.2018977262302196e-6, 0.1464541863493966e-6, 0.7784249118997964e-1, 0.3245075353396018),
            *(0.7494013383880406e-2, 0.1622293157301561e-7, 0.1135863833257075e-7, 0.2230505975721359e-2),
            *(0.2087162882798630e-3, 0.1396921016840158e-4, 0.8964884856898295e-2, 0.4352846369330103e-17),
            *(0.6899219696263405e-2, 0.1007803037365946e-3, 0.1772146513969984e-5, 0.5682943292316392e-4),
        ),
        stiff=True,
        scale=1e-4,
        published=True,
    ),
)

ALL = {problem.name: problem for problem in (*NONSTIFF, *STIFF)}
