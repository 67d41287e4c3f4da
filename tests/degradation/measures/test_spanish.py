"""Spanish answers: choices settled on, words known, and measures that go by the prompt's language."""

import pytest

from frankenlm.degradation.measures.choices import chosen
from frankenlm.degradation.measures.languages import LANGUAGES, SPANISH
from frankenlm.degradation.measures.measure import measure_row
from frankenlm.degradation.measures.spanish_words import is_spanish
from frankenlm.degradation.measures.speech import SPANISH as SPEECH
from frankenlm.degradation.measures.speech import SPEECHES
from frankenlm.degradation.measures.text_words import words
from frankenlm.degradation.prompts import LANGUAGES as NAMES
from frankenlm.degradation.prompts import LabPrompt

FRUIT = ("limón", "naranja", "jamón", "puerta")
TEXTS = (
    "El tren salió puntual de la estación central. Los pasajeros guardaron sus maletas y buscaron sus asientos. "
    "Por la ventanilla se veían campos verdes, ríos y pueblos pequeños. El revisor pasó pidiendo los billetes y nos "
    "deseó buen viaje.",
    "Caminábamos despacio por el bosque cuando empezó a llover. Mi hermana, que nunca se enoja, me pidió que corriera "
    "hasta la casa más cercana; allí nos secamos junto al fuego y tomamos leche caliente.",
)
FORMS = words(
    "niños niñas luces pequeñas rojas casita gatitos florecita lentamente doctora panes poquito buenísimo camino "
    "caminas caminaba caminábamos caminaron caminará caminaríamos caminando caminado caminara comió comieron "
    "comeríamos comiendo vivía vivieron piensan vuelve duermen piden busqué llegué crucé conozco cojo sigo leyeron "
    "fueron tuvo hubiera habríamos puso dijo lavarse ponerlo dándoselas despertándome"
)
OTHERS = words("caminxo briml zuq the water kettle gekocht tafrel molubigo espentórico q ñ")


def test_tables_agree():
    assert set(LANGUAGES) == set(SPEECHES) == set(NAMES)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("limón", "limón"),
        ("Limon.", "limón"),
        ("El limón.", "limón"),
        ("«Limón»", "limón"),
        ("¡Limón!", "limón"),
        ("Es la naranja, porque es dulce.", "naranja"),
        ("La respuesta es **limón**.", "limón"),
        ("La palabra correcta es: limón, no la naranja", "limón"),
        ("Limones", "limón"),
        ("No es la naranja, sino el limón.", "limón"),
        ("A diferencia de la naranja, el limón es ácido.", "limón"),
        ("La naranja es dulce. Por lo tanto, limón.", "limón"),
        ("limo\u0301n", "limón"),
        ("limón, naranja, jamón o puerta", None),
        ("limonada", None),
        ("", None),
        ("¿?", None),
        ("no sé", None),
    ],
)
def test_choices_of_words(completion, expected):
    assert chosen(completion, FRUIT, speech=SPEECH) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("Sí.", "sí"),
        ("sí", "sí"),
        ("Si", "sí"),
        ("Sí, el perro lo persiguió.", "sí"),
        ("No, no lo hizo.", "no"),
        ("No.", "no"),
        ("¡No!", "no"),
        ("La respuesta es no.", "no"),
        ("Claro que sí.", "sí"),
        ("El perro no persiguió al gato.", "no"),
        ("No sé si fue así.", None),
        ("No lo sé.", None),
        ("sí o no", None),
        ("Quizás.", None),
    ],
)
def test_yes_and_no(completion, expected):
    assert chosen(completion, ("sí", "no"), speech=SPEECH, asked=("persiguió", "perro", "gato")) == expected


@pytest.mark.parametrize("word", FORMS)
def test_forms_are_known(word):
    assert is_spanish(word)


@pytest.mark.parametrize("word", OTHERS)
def test_others_are_not(word):
    assert not is_spanish(word)


@pytest.mark.parametrize("text", TEXTS)
def test_coverage(text):
    found = words(text)
    assert sum(map(is_spanish, found)) / len(found) > 0.9
    assert sum(map(LANGUAGES["en"].known, found)) / len(found) < 0.5


def test_measures_go_by_the_language_of_the_prompt():
    row = {"completion": TEXTS[0], "prompt_text": "Describe un viaje en tren."}
    english = measure_row(row, LabPrompt(id=1, text=row["prompt_text"], set="x", skill="x"))
    spanish = measure_row(row, LabPrompt(id=1, text=row["prompt_text"], set="x", skill="x", language="es"))
    assert spanish["unknown_words"] < 0.1 < 0.4 < english["unknown_words"]
    assert spanish["word_frequency"] is None and english["word_frequency"] is not None
    assert spanish["lexical_density"] < english["lexical_density"]
    assert spanish["prompt_overlap"] == pytest.approx(2 / 3), "viaje and tren of describe, viaje, tren"


def test_stems_meet():
    assert len({SPANISH.stem(word) for word in ("niño", "niños", "niña", "niñas")}) == 1
    assert SPANISH.content_stems(["el", "árbol", "de", "los", "arboles"]) == ["arbol", "arbol"]
