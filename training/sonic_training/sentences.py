"""Voices and texts of the speech corpus, and which of them are held out from training.

The texts were written for this project and are free to use. They cover what moves a mouth in different
ways: closed lips (p, b, m), rounded and spread vowels, numbers, questions, enumerations, single words and
long sentences.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from sonic.errors import InputError

Split = Literal["train", "held_out"]
#: Default number of utterances of each split.
COUNTS = {"train": 400, "held_out": 60}
SPEED_LIMITS = (0.7, 1.45)
PITCH_LIMITS = (25, 75)

#: No training voice speaks these languages: all of their texts are held out.
HELD_OUT_LANGUAGES = frozenset({"pl"})
_HELD_OUT_EVERY = 4  # in the other languages, every fourth text is held out

SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "Good morning, everybody.",
        "My brother bought a purple bicycle in May.",
        "Who left the window open all night?",
        "Nobody told me that the meeting had moved.",
        "We need four eggs, two lemons and a pound of butter.",
        "The old bridge shakes whenever a lorry goes over it.",
        "Yes, of course you may.",
        "Her phone number ends in seven, nine, zero, three.",
        "Please put the blue cups above the sink.",
        "A thin fox jumped through the gap in the fence.",
        "I would rather walk than wait for the bus.",
        "Would you like some more soup, or are you full?",
        "Five hundred people voted, and only twelve said no.",
        "The choir sang so softly that we heard the rain.",
        "Stop! The paint is still wet.",
        "Mum baked plum pies for both of my uncles.",
        "The train to Oxford leaves at a quarter past eight.",
        "How far is it from here to the lighthouse?",
        "He whispers when he thinks, and shouts when he sleeps.",
        "Measure twice, then cut the wood once.",
        "Three wise women watched the waves wash over the wall.",
        "That joke was better the first time.",
        "If the weather holds, we shall pick apples on Thursday.",
        "Why is the moon so low this evening?",
        "It costs nineteen dollars and fifty cents.",
        "Bob and Pam may be part of the problem.",
        "Turn left at the church, go up the hill, and look for a yellow door.",
        "The judge usually arrives in a huge orange jacket.",
        "Thanks, that is very kind of you.",
        "Our teacher drew a circle, a square and a strange little horse.",
        "Nothing in this drawer belongs to me.",
        "Can you hear me at the back of the room?",
        "We moved here in nineteen eighty six, when the street was a field.",
        "Fresh fish and five fat figs, please.",
        "She opened the box, smiled, and said nothing at all.",
        "I am almost sure that I locked the garage.",
        "The baby laughed at the bubbles for an hour.",
        "What happened to your thumb?",
        "Every Sunday my father polishes all the shoes in the house.",
        "Warm wool socks are wonderful in winter.",
        "Sit down, make yourself comfortable, and tell me about your journey.",
        "Version two is faster, but version three is safer.",
        "The cook chopped the chillies, and the whole kitchen coughed.",
        "Maybe tomorrow, maybe never.",
        "Look at those clouds over the valley!",
        "My aunt keeps eleven goats, one donkey and a very rude parrot.",
        "You could boil an egg while this computer starts.",
        "Is it really Wednesday already?",
        "A good map shows you what to leave out.",
        "They rowed slowly round the island before the wind rose.",
        "Zero, one, two, three, four, five, six, seven, eight, nine.",
        "Please repeat the last part once more.",
        "The smell of coffee pulled me out of bed.",
        "Do you prefer the green coat or the brown one?",
        "Half of the pupils had forgotten their gym shoes.",
        "Keep the change, and have a pleasant evening.",
        "Although the path was steep, nobody complained about the climb.",
        "Hello?",
        "We thought that the thunder was further north.",
        "Before you leave, water the plants, feed the cat and empty the bin.",
    ),
    "de": (
        "Guten Abend, wie geht es Ihnen?",
        "Meine Schwester wohnt seit drei Jahren in einem Dorf am Meer.",
        "Bitte bringen Sie mir ein Glas Wasser und etwas Brot.",
        "Der alte Baum vor dem Haus blüht jedes Jahr im Mai.",
        "Warum habt ihr die Tür nicht zugemacht?",
        "Fünfzehn Kinder spielten im Park, bis es dunkel wurde.",
        "Schöne Grüße an deine Großmutter!",
        "Morgen früh fahren wir mit dem ersten Zug in die Berge.",
    ),
    "fr": (
        "Bonjour, vous avez bien dormi ?",
        "Mon voisin répare des vélos dans une petite boutique bleue.",
        "Je voudrais deux pommes, un pain et un peu de beurre.",
        "Où as-tu mis les clés de la voiture ?",
        "Quand il pleut, les enfants jouent dans la cuisine.",
        "Le musée ouvre à neuf heures et demie.",
        "C'est une bonne idée, mais il faut du temps.",
        "Nous avons marché toute la nuit sous une lune énorme.",
    ),
    "es": (
        "Buenos días, ¿cómo está usted?",
        "Mi abuela prepara una sopa muy buena los domingos.",
        "El autobús pasa por la plaza cada veinte minutos.",
        "¿Quién dejó abierta la ventana del baño?",
        "Compramos pan, queso, tomates y una botella de vino.",
        "Los niños corrían por la playa con un perro blanco.",
        "No me acuerdo de su nombre, pero sí de su voz.",
        "Mañana por la tarde vamos a plantar ocho árboles.",
    ),
    "it": (
        "Buongiorno, che cosa posso fare per lei?",
        "Il mio gatto dorme sempre sopra il pianoforte.",
        "Abbiamo bisogno di quattro piatti, due bicchieri e una pentola.",
        "Domani mattina il mercato apre molto presto.",
        "Perché non mi hai chiamato ieri sera?",
        "La strada per il lago passa in mezzo ai campi.",
        "Sì, va bene, ma facciamo piano.",
        "Mia zia ha comprato una barca vecchia e l'ha dipinta di rosso.",
    ),
    "pt": (
        "Bom dia, você dormiu bem?",
        "Minha irmã trabalha numa padaria perto da ponte.",
        "Quero um copo de água e duas bananas, por favor.",
        "Onde fica a estação de trem mais próxima?",
        "O menino abriu a porta e viu um pombo na mesa.",
        "Faltam quinze minutos para o começo do filme.",
        "Não sei, talvez amanhã.",
        "Choveu tanto que o rio passou por cima do muro.",
    ),
    "nl": (
        "Goedemorgen, wilt u koffie of thee?",
        "Mijn buurman heeft zeven kippen en een oude blauwe fiets.",
        "Waarom staat de deur van de schuur open?",
        "De boot vertrekt om kwart over tien uit de haven.",
        "We kopen brood, boter, kaas en een pond peren.",
        "Het regende de hele dag, dus bleven wij binnen.",
        "Dat had ik niet verwacht!",
        "Morgen gaan mijn ouders met de trein naar zee.",
    ),
    "pl": (
        "Dzień dobry, jak się pani miewa?",
        "Mój brat mieszka w małym domu pod lasem.",
        "Poproszę dwie bułki, masło i pół kilo pomidorów.",
        "Dlaczego nikt nie zamknął okna?",
        "Pociąg do Gdańska odjeżdża za piętnaście minut.",
        "Babcia upiekła ciasto ze śliwkami i zaprosiła sąsiadów.",
        "Być może jutro, być może nigdy.",
        "Wieczorem wiatr ucichł i nad wodą pojawiła się mgła.",
    ),
    # In Pinyin, as espeak-ng 1.51 reads Chinese characters with English phonemes.
    "cmn": (
        "nǐ hǎo, hěn gāoxìng rènshi nǐ.",
        "jīntiān tiānqì hěn hǎo, wǒmen qù gōngyuán ba.",
        "wǒ māma měi tiān zǎoshang dōu hē yì bēi chá.",
        "qǐng wèn, huǒchē zhàn zěnme zǒu?",
        "yī, èr, sān, sì, wǔ, liù, qī, bā, jiǔ, shí.",
        "zhè běn shū bǐ nà běn shū guì wǔ kuài qián.",
        "tā shuō tā míngtiān bù lái le.",
        "wǎnshang wǒ péngyou lái wǒ jiā chī fàn.",
    ),
}


def sentences(language: str, held_out: bool) -> tuple[str, ...]:
    """The training texts or the held-out texts of a language.

    Args:
        language: a key of `SENTENCES`, such as "en".
        held_out: True for the held-out texts: every fourth one, or all in a held-out language. False for
            the training texts: the remaining ones, or none in a held-out language.

    Raises:
        InputError: there are no texts in this language.
    """
    if language not in SENTENCES:
        raise InputError(f"there are no sentences in {language!r}; there are some in {sorted(SENTENCES)}")
    all_held_out = language in HELD_OUT_LANGUAGES
    return tuple(
        text
        for index, text in enumerate(SENTENCES[language])
        if (all_held_out or index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1) == held_out
    )


@dataclass(frozen=True)
class Voice:
    """A voice of a speech synthesizer.

    Attributes:
        name: unique name.
        synthesizer: the program's name, "espeak-ng" or "flite".
        language: a key of `SENTENCES`.
        arguments: the program's arguments that select the voice.
        held_out: whether the voice is held out from training.
    """

    name: str
    synthesizer: Literal["espeak-ng", "flite"]
    language: str
    arguments: tuple[str, ...]
    held_out: bool


def _espeak(name: str, language: str, held_out: bool = False) -> Voice:
    return Voice(f"espeak-{name}", "espeak-ng", language, ("-v", name), held_out)


def _flite(name: str, held_out: bool = False) -> Voice:
    return Voice(f"flite-{name}", "flite", "en", ("-voice", name), held_out)


# The f variants of espeak-ng and flite's slt are female, all others male. flite's rms is a recorded voice
# that ignores the pitch.
VOICES: tuple[Voice, ...] = (
    _flite("kal"),
    _flite("awb"),
    _flite("rms"),
    _flite("kal16"),
    _espeak("en-us", "en"),
    _espeak("en-us+f2", "en"),
    _espeak("en-us+m3", "en"),
    _espeak("en-us+klatt", "en"),
    _espeak("en-gb+f4", "en"),
    _espeak("en-gb-x-rp+m7", "en"),
    _espeak("en-gb-scotland+f1", "en"),
    _espeak("de+m1", "de"),
    _espeak("de+f5", "de"),
    _espeak("fr-fr+f3", "fr"),
    _espeak("fr-be+m4", "fr"),
    _espeak("es+m2", "es"),
    _espeak("es-419+f2", "es"),
    _espeak("it+f1", "it"),
    _espeak("pt-br+m5", "pt"),
    _espeak("nl+f4", "nl"),
    _espeak("cmn-latn-pinyin+f5", "cmn"),
    _flite("slt", held_out=True),
    _espeak("en-us-nyc+klatt4", "en", held_out=True),
    _espeak("en-gb-x-gbcwmd+f3", "en", held_out=True),
    _espeak("it+m6", "it", held_out=True),
    _espeak("pl+m8", "pl", held_out=True),
    _espeak("pl+belinda", "pl", held_out=True),
)


def voices(split: Split) -> tuple[Voice, ...]:
    """The voices of a split.

    Raises:
        InputError: the split is neither "train" nor "held_out".
    """
    if split not in COUNTS:
        raise InputError(f"the split is {split!r}, but should be one of {sorted(COUNTS)}")
    return tuple(voice for voice in VOICES if voice.held_out == (split == "held_out"))


@dataclass(frozen=True)
class Plan:
    """How one utterance is synthesized.

    Attributes:
        voice: the voice's name.
        text: what is said.
        speed, pitch: as in `sonic_training.speech.synthesize`.
    """

    voice: str
    text: str
    speed: float
    pitch: int

    @property
    def name(self) -> str:
        """Name of the utterance's file; it follows from the other attributes, so equal plans share a file."""
        digest = hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=6).hexdigest()
        return f"{self.voice}-{digest}.wav"


def plan_corpus(split: Split, count: int | None = None, seed: int = 0) -> list[Plan]:
    """Plan the utterances of a corpus: the voices take turns, and each speaks its texts in random order.

    With the same seed, a longer corpus begins with the utterances of a shorter one.

    Args:
        split: "train" or "held_out".
        count: number of utterances; that of `COUNTS` by default.
        seed: of order, speeds and pitches.

    Raises:
        InputError: the split is unknown, or the count is below one.
    """
    chosen = voices(split)
    count = COUNTS[split] if count is None else count
    if count < 1:
        raise InputError(f"the corpus should have {count} utterances, but at least one is needed")
    plans = []
    for index in range(count):
        turn, voice_index = divmod(index, len(chosen))
        voice = chosen[voice_index]
        texts = sentences(voice.language, voice.held_out)
        cycle, position = divmod(turn, len(texts))
        order = np.random.default_rng([seed, voice_index, cycle]).permutation(len(texts))
        generator = np.random.default_rng([seed, voice_index, cycle, position])
        speed = float(np.exp(generator.uniform(*np.log(SPEED_LIMITS))))
        pitch = int(generator.integers(PITCH_LIMITS[0], PITCH_LIMITS[1] + 1))
        plans.append(Plan(voice.name, texts[order[position]], round(speed, 3), pitch))
    return plans
