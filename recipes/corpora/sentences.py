"""Sentences for synthetic speech, in eight languages, as many as wanted and all different.

A sentence is a form, whose parts are chosen independently of each other: a sentence's number says
which. Languages other than English have fewer forms and parts, chosen so that no word has to agree
with another.
"""

import math
import random
from typing import NamedTuple


class Grammar(NamedTuple):
    """Parts of sentences, with their choices divided by ``|``, and which parts make a sentence."""

    parts: dict[str, str]
    forms: tuple[str, ...]


def sentence(number: int, *, seed: int, language: str = "en") -> str:
    """Give the ``number``-th sentence of a seed.

    Two numbers below 10^8 never give the same in English, nor below 10^4 in the other languages.

    Parameters
    ----------
    number : 0 and up.
    seed : of the order of the sentences.
    language : ISO 639-1 code, a key of `GRAMMARS`.
    """
    return _spell(GRAMMARS[language], number, seed=seed)


def short_sentence(number: int, *, seed: int) -> str:
    """Give the ``number``-th English sentence of four words, which are of thirty-two in all.

    Two numbers below 4096 never give the same. Few words make a corpus from which little speech is
    enough to learn; parameters as those of `sentence`.
    """
    return _spell(_SHORT, number, seed=seed)


def _spell(grammar: Grammar, number: int, *, seed: int) -> str:
    parts, forms = grammar
    index, form = divmod(number, len(forms))
    rows = [parts[part].split("|") for part in forms[form].split()]
    total = math.prod(map(len, rows))
    rng = random.Random(seed)
    offset, step = rng.randrange(total), rng.randrange(total)
    while math.gcd(step, total) > 1:  # without common divisor every combination is met once
        step = rng.randrange(total)
    index = (offset + index * step) % total
    words = []
    for row in rows:
        index, choice = divmod(index, len(row))
        words.append(row[choice])
    if forms[form].endswith("ending"):
        words[-2] += ","
    text = " ".join(words)
    return f"{text[0].upper()}{text[1:]}."


# Each part's choice is independent of the others, and no two combinations read the same.
_ENGLISH_PARTS = {
    "opening": "Yesterday morning,|After the long meeting,|In the early spring,|Not long ago,"
    "|Just before midnight,|On the other side of town,|Without a single word,|As far as I know,"
    "|Every second Thursday,|For the first time in years,|When the storm had passed,"
    "|To everyone's surprise,|Once again,|At the old harbour,|During the summer,"
    "|By the end of the week,|In a quiet village,|Much to my regret,|While the others slept,",
    "determiner": "the|one|another|that|this|their|our|his|her|my|your|some|each|every|no",
    "adjective": "young|old|cheerful|tired|famous|clever|nervous|patient|quiet|generous|foreign"
    "|careful|stubborn|friendly|curious|grumpy|brave|lonely|polite|busy|honest|lazy|shy",
    "person": "doctor|farmer|teacher|sailor|engineer|gardener|painter|judge|baker|pilot|neighbour"
    "|violinist|shepherd|librarian|chemist|guide|mechanic|author|nurse|student|king|thief|child|uncle",
    "adverb": "slowly|quickly|carefully|secretly|finally|almost|always|never|happily|suddenly|often"
    "|gently|proudly|barely|usually",
    "verb": "carried|watched|painted|measured|found|opened|described|borrowed|repaired|collected"
    "|moved|photographed|sold|counted|admired|forgot|touched|wrapped|chose|noticed|cleaned|hid",
    "number": "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirty|forty|fifty"
    "|a hundred|several|a few|many",
    "colour": "yellow|heavy|broken|wooden|silver|tiny|beautiful|empty|frozen|ancient|smooth|purple"
    "|dusty|expensive|round|fragile|bright|useless|enormous",
    "thing": "boxes|letters|bicycles|clocks|apples|pictures|shells|chairs|bottles|stones|ships"
    "|flowers|maps|coins|horses|books|candles|engines|umbrellas|jackets|feathers|bridges|mirrors",
    "place": "near the river|behind the church|in the kitchen|under a large oak tree|at the station"
    "|across the valley|on the roof|beside the road|for the museum|with great pleasure"
    "|in front of the school|along the shore|between two houses|outside the theatre"
    "|above the clouds|through the fog|without any help|inside the cave",
    "ending": "and then went home|but nobody asked why|which was exactly what we needed"
    "|because the weather was fine|though it was getting dark|just as I had expected"
    "|so we all laughed|and the music began to play|as usual|if you believe the story"
    "|until the bell rang|or so they say",
}
_ENGLISH_FORMS = (
    "determiner adjective person verb number thing",
    "opening determiner person verb number colour thing place",
    "determiner adjective person adverb verb number colour thing place",
    "opening determiner adjective person adverb verb number colour thing place ending",
)
_ENGLISH = Grammar(_ENGLISH_PARTS, _ENGLISH_FORMS)

_SHORT = Grammar(
    parts={
        "name": "Anna|Peter|Maria|David|Susan|Robert|Julia|Simon",
        "verb": "bought|painted|found|counted|sold|carried|opened|washed",
        "number": "two|three|five|six|seven|eight|nine|twelve",
        "thing": "boxes|apples|letters|bottles|flowers|stones|chairs|coins",
    },
    forms=("name verb number thing",),
)

# German and Dutch put the verb second: behind an opening it stands before the subject.
_VERB_SECOND = ("subject verb object place", "opening verb subject object place")
_VERB_THIRD = ("subject verb object place", "opening subject verb object place")

_DUTCH = Grammar(
    parts={
        "opening": "gisteravond|vanochtend vroeg|na de vergadering|elke donderdag"
        "|tegen middernacht|in het voorjaar|tot ieders verbazing|op een dag"
        "|na de storm|zonder een woord",
        "subject": "de oude boer|mijn buurman|een jonge zeeman|de schilder|onze lerares"
        "|het kleine meisje|de bakker|zijn tante|een vreemde reiziger|de koningin",
        "verb": "vond|tekende|verkocht|bekeek|vergat|verborg|kocht|bracht|zocht|beschreef",
        "object": "een houten doos|de zilveren sleutel|drie brieven|een oude kaart"
        "|het blauwe boek|een mand vol appels|twee gouden munten|de gebroken klok"
        "|een lange ladder|een fles melk",
        "place": "bij de rivier|achter de kerk|in de keuken|onder een grote boom"
        "|op het station|naast de molen|aan het strand|voor het museum"
        "|tussen twee huizen|op de markt",
    },
    forms=_VERB_SECOND,
)
_FRENCH = Grammar(
    parts={
        "opening": "hier soir|ce matin|après la tempête|chaque jeudi|vers minuit|au printemps"
        "|à la surprise de tous|un beau jour|sans un mot|avant le repas",
        "subject": "le vieux paysan|mon voisin|une jeune actrice|le peintre|notre professeur"
        "|la petite fille|le boulanger|sa tante|un voyageur étranger|la reine",
        "verb": "trouva|dessina|vendit|regarda|oublia|cacha|acheta|apporta|chercha|décrivit",
        "object": "une boîte en bois|la clé d'argent|trois lettres|une vieille carte"
        "|le livre bleu|un panier de pommes|deux pièces d'or|l'horloge cassée"
        "|une longue échelle|une bouteille de lait",
        "place": "près de la rivière|derrière l'église|dans la cuisine|sous un grand arbre"
        "|à la gare|à côté du moulin|sur la plage|devant le musée"
        "|entre deux maisons|au marché",
    },
    forms=_VERB_THIRD,
)
_GERMAN = Grammar(
    parts={
        "opening": "gestern Abend|heute früh|nach der Sitzung|jeden Donnerstag"
        "|gegen Mitternacht|im Frühling|zur Überraschung aller|eines Tages"
        "|nach dem Sturm|ohne ein Wort",
        "subject": "der alte Bauer|mein Nachbar|eine junge Ärztin|der Maler|unsere Lehrerin"
        "|das kleine Mädchen|der Bäcker|seine Tante|ein fremder Reisender"
        "|die Königin",
        "verb": "fand|zeichnete|verkaufte|betrachtete|vergaß|versteckte|kaufte|brachte"
        "|suchte|beschrieb",
        "object": "eine hölzerne Kiste|den silbernen Schlüssel|drei Briefe|eine alte Karte"
        "|das blaue Buch|einen Korb voller Äpfel|zwei goldene Münzen"
        "|die zerbrochene Uhr|eine lange Leiter|eine Flasche Milch",
        "place": "am Fluss|hinter der Kirche|in der Küche|unter einem großen Baum|am Bahnhof"
        "|neben der Mühle|am Strand|vor dem Museum|zwischen zwei Häusern"
        "|auf dem Markt",
    },
    forms=_VERB_SECOND,
)
_ITALIAN = Grammar(
    parts={
        "opening": "ieri sera|questa mattina|dopo la tempesta|ogni giovedì|verso mezzanotte"
        "|in primavera|con sorpresa di tutti|un bel giorno|senza una parola"
        "|prima di cena",
        "subject": "il vecchio contadino|il mio vicino|una giovane attrice|il pittore"
        "|la nostra maestra|la bambina|il fornaio|sua zia|un viaggiatore straniero"
        "|la regina",
        "verb": "trovò|disegnò|vendette|guardò|dimenticò|nascose|comprò|portò|cercò|descrisse",
        "object": "una scatola di legno|la chiave d'argento|tre lettere|una vecchia mappa"
        "|il libro azzurro|un cesto di mele|due monete d'oro|l'orologio rotto"
        "|una lunga scala|una bottiglia di latte",
        "place": "vicino al fiume|dietro la chiesa|in cucina|sotto un grande albero"
        "|alla stazione|accanto al mulino|sulla spiaggia|davanti al museo"
        "|tra due case|al mercato",
    },
    forms=_VERB_THIRD,
)
_POLISH = Grammar(
    parts={
        "opening": "każdego ranka|po burzy|w każdy czwartek|około północy|na wiosnę"
        "|ku zdziwieniu wszystkich|pewnego dnia|bez słowa|przed obiadem"
        "|od czasu do czasu",
        "subject": "stary rolnik|mój sąsiad|młoda lekarka|malarz|nasza nauczycielka"
        "|mała dziewczynka|piekarz|jego ciotka|obcy podróżny|królowa",
        "verb": "znajduje|rysuje|sprzedaje|ogląda|opisuje|chowa|kupuje|przynosi|naprawia|zabiera",
        "object": "drewnianą skrzynkę|srebrny klucz|trzy listy|starą mapę|niebieską książkę"
        "|kosz jabłek|dwie złote monety|zepsuty zegar|długą drabinę|butelkę mleka",
        "place": "nad rzeką|za kościołem|w kuchni|pod wielkim drzewem|na dworcu|obok młyna"
        "|na plaży|przed muzeum|między domami|na targu",
    },
    forms=_VERB_THIRD,
)
_PORTUGUESE = Grammar(
    parts={
        "opening": "ontem à noite|esta manhã|depois da tempestade|todas as quintas-feiras"
        "|perto da meia-noite|na primavera|para surpresa de todos|um belo dia"
        "|sem uma palavra|antes do jantar",
        "subject": "o velho lavrador|o meu vizinho|uma jovem atriz|o pintor|a nossa professora"
        "|a menina|o padeiro|a sua tia|um viajante estrangeiro|a rainha",
        "verb": "encontrou|desenhou|vendeu|observou|esqueceu|escondeu|comprou|levou"
        "|procurou|descreveu",
        "object": "uma caixa de madeira|a chave de prata|três cartas|um mapa antigo"
        "|o livro azul|um cesto de maçãs|duas moedas de ouro|o relógio partido"
        "|uma escada comprida|uma garrafa de leite",
        "place": "perto do rio|atrás da igreja|na cozinha|debaixo de uma grande árvore"
        "|na estação|ao lado do moinho|na praia|em frente do museu|entre duas casas"
        "|no mercado",
    },
    forms=_VERB_THIRD,
)
_SPANISH = Grammar(
    parts={
        "opening": "anoche|esta mañana|después de la tormenta|cada jueves|hacia la medianoche"
        "|en primavera|para sorpresa de todos|un buen día|sin una palabra"
        "|antes de la cena",
        "subject": "el viejo campesino|mi vecino|una joven actriz|el pintor|nuestra maestra"
        "|la niña|el panadero|su tía|un viajero extranjero|la reina",
        "verb": "encontró|dibujó|vendió|miró|olvidó|escondió|compró|llevó|buscó|describió",
        "object": "una caja de madera|la llave de plata|tres cartas|un mapa antiguo"
        "|el libro azul|una cesta de manzanas|dos monedas de oro|el reloj roto"
        "|una escalera larga|una botella de leche",
        "place": "cerca del río|detrás de la iglesia|en la cocina|bajo un gran árbol"
        "|en la estación|junto al molino|en la playa|delante del museo"
        "|entre dos casas|en el mercado",
    },
    forms=_VERB_THIRD,
)

GRAMMARS = {
    "en": _ENGLISH,
    "nl": _DUTCH,
    "fr": _FRENCH,
    "de": _GERMAN,
    "it": _ITALIAN,
    "pl": _POLISH,
    "pt": _PORTUGUESE,
    "es": _SPANISH,
}
