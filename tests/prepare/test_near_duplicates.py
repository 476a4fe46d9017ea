import random
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.prepare.splits import COMPARED, NearDuplicates, shingles

WORDS = ["a", "b", "c", "d"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), max_size=8)


def have_near_duplicate(texts: list[str], references: list[str], threshold: float) -> list[bool]:
    known = NearDuplicates(references, threshold)
    return [known.hold_one_like(shingles(text)) for text in texts]


def alike(one: str, other: str, threshold: float = 0.8) -> bool:
    found = have_near_duplicate([one], [other], threshold)
    assert found == have_near_duplicate([other], [one], threshold)
    return found[0]


def brute_force(texts: list[str], references: list[str], threshold: float) -> list[bool]:
    """Every pair, with sets of trigrams made another way."""

    def trigrams(text: str) -> set[str]:
        words = text.lower().split()
        return {" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))}

    return [
        any(len(trigrams(t) & trigrams(r)) / len(trigrams(t) | trigrams(r)) >= threshold for r in references)
        for t in texts
    ]


@given(TEXTS, TEXTS, st.sampled_from([0.1, 0.25, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0]))
def test_finds_what_comparing_all_pairs_finds(texts, references, threshold):
    assert have_near_duplicate(texts, references, threshold) == brute_force(texts, references, threshold)


def test_similarity_of_a_known_pair():
    # trigrams abc bcd cde and bcd cde def: 2 shared of 4
    assert [alike("a b c d e", "b c d e f", threshold) for threshold in (0.5, 0.51)] == [True, False]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("12 + 5 =", "12 - 5 ="),  # marin-community/marin#6854
        ("12 : 4", "12 . 4"),
        ("12 × 4", "12 ÷ 4"),
        ("１２＋４＝", "１２－４＝"),
        ("-5", "5"),
        ("1.5", "15"),
        ("3.5", "3:5"),
        ("10 %", "10"),
        ("3 + 4!", "3 + 4"),
        ("What is 3! times 4", "What is 3 times 4!"),
        ("x^2", "x_2"),
        ("f(1, 5)", "f(1.5)"),
        ("f′(x)", "f(x)"),
        ("x == y", "x != y"),
        ("if (!ok)", "if (ok)"),
        ("!flag", "flag"),
        ("*p", "&p"),
        ("items[0]", "items(0)"),
        ("user.name", "user,name"),
        ("a ? b : c", "a , b : c"),
        ('x = "abc"', "x = abc"),
        ('{"foo": "bar"}', '{"foo", "bar"}'),
        ("C++", "C"),
        ("Is 5 > 3?", "Is 5 < 3?"),
        ("¬p ∧ q", "p ∧ ¬q"),
        ("Na+", "Na-"),
        ("foo--", "foo++"),
        ("0x1F", "0x1E"),
        ("٣ + ٤", "٣ - ٤"),
        ("great :)", "great :("),
        ("great ;)", "great :)"),
        ("lol :D", "lol ;D"),
        ("what a great day 😀", "what a great day 😡"),
        ("it costs $5", "it costs €5"),
        ("?!", "??"),
        ("Two words", "words two"),
        ("", "?"),
        # A row of a template, as in ChenghaoMou/text-dedup#17.
        (
            "Farm to Market Road 1506 (FM 1506) is located in Lamar County.",
            "Farm to Market Road 1507 (FM 1507) is located in Lamar County.",
        ),
    ],
)
def test_short_texts_that_differ_in_a_sign_or_a_number_are_not_alike(one, other):
    assert not alike(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello, world!", "hello world"),
        ("The answer is 42.", "the answer is 42"),
        ("In 1999, we left.", "in 1999 we left"),
        ("It works (mostly).", "it works (mostly)"),
        ('He said "yes."', "he said “yes”."),
        ("don’t go", "don't go"),
        ("it 's great , really .", "It's great, really."),
        ("Impute all values in `X`.", "impute all values in X"),
        ("wait…what", "wait...what"),
        ("a well-known fact", "a well known fact"),
        ("word — and word", "word and word"),
        ("declined once,second time", "declined once, second time"),
        ("Bonjour le monde !", "bonjour le monde!"),
        ("¿Qué tal?", "qué tal"),
        ("«Да», сказал он.", "да сказал он"),
        ("STRASSE", "straße"),
        ("word  two\u00a0three\tx\n", "word two three x"),
        ("soft\u00adhyphen and j\u200boiner", "softhyphen and joiner"),
        ("a+b", "a + b"),
        ("سلام، دنيا؟", "سلام دنيا"),
        ("안녕하세요, 세계!", "안녕하세요 세계"),
        ("नमस्ते दुनिया।", "नमस्ते दुनिया"),
        ("你好，世界。", "你好,世界."),
        ("他说：“好。”", "他说好"),
        ("สวัสดี ชาวโลก", "สวัสดีชาวโลก"),
        (unicodedata.normalize("NFD", "café où Việt Nam 각"), "café où việt nam 각"),
    ],
)
def test_what_prose_may_vary_in_does_not_count(one, other):
    assert alike(one, other, 1.0)


def test_a_sign_in_long_prose_leaves_it_a_near_duplicate():
    words = [f"word{n}" for n in range(60)]
    assert alike(" ".join(words), " ".join([*words[:20], "&", *words[20:]]))
    assert alike("The index .IXIC " + " ".join(words), "The index <.IXIC> " + " ".join(words))


@pytest.mark.parametrize(
    "text",
    [
        "世界经济史是一部基于假象和谎言的连续剧",  # of ChenghaoMou/text-dedup#103
        "東京タワーのパーティーに行きました",
        "วันนี้อากาศดีมากเราไปเที่ยวกัน",
        "ມື້ນີ້ອາກາດດີຫຼາຍພວກເຮົາໄປທ່ຽວ",
        "ថ្ងៃនេះអាកាសធាតុល្អណាស់យើងទៅលេង",
        "ဒီနေ့ရာသီဥတုကောင်းတယ်သွားလည်ရအောင်",
        "བཀྲ་ཤིས་བདེ་ལེགས་ཁྱེད་རང་",
    ],
)
def test_scripts_without_spaces_are_compared_letter_by_letter(text):
    assert alike(text, text + "。" + text[0])
    shuffled = "".join(random.Random(0).sample(text, len(text)))
    assert not alike(text, shuffled)


def test_scripts_with_spaces_are_compared_word_by_word():
    for text in ("오늘 날씨가 정말 좋아요", "الطقس جميل جدا اليوم", "आज मौसम बहुत अच्छा है"):
        assert not alike(text, text.rpartition(" ")[0])  # 1 of 2 trigrams; letter by letter it would be 0.8


def tickets(n: int) -> list[str]:
    """Rows of a template, of which a third of the trigrams hold one of few fillers."""
    draw = random.Random(n).randrange
    return [
        f"the order of customer {draw(60)} in town {draw(60)} is in state {draw(9)} please help as soon as you can"
        for _ in range(n)
    ]


def boilerplate(n: int) -> list[str]:
    """Long rows, three quarters of which are the same in all."""
    draw, same = random.Random(n).randrange, " ".join(f"common{n}" for n in range(60))
    return [f"{same} {' '.join(str(draw(5)) for _ in range(20))}" for _ in range(n)]


@pytest.mark.parametrize("rows", [tickets, boilerplate])
def test_generated_rows_are_compared_with_a_bounded_number_of_others(rows, monkeypatch):
    compared, exact = [0], NearDuplicates._alike

    def counted(*sets):
        compared[0] += 1
        return exact(*sets)

    monkeypatch.setattr(NearDuplicates, "_alike", counted)
    made = rows(4000)
    have_near_duplicate(made[:3000], made[3000:], 0.8)
    assert 3000 < compared[0] <= 3000 * COMPARED  # all pairs are a thousand a row


@pytest.mark.slow
@pytest.mark.parametrize("rows", [tickets, boilerplate])
def test_time_grows_with_the_number_of_rows(rows):
    made, seconds = rows(100_000), []
    for n in (10_000, 10_000, 10_000, 100_000):
        began = time.process_time()
        have_near_duplicate(made[: n * 4 // 5], made[n * 4 // 5 : n], 0.8)
        seconds.append(time.process_time() - began)
    print(f"10,000 rows: {min(seconds[:3]):.2f} s, 100,000 rows: {seconds[3]:.2f} s")
    assert seconds[3] < 20 * min(seconds[:3])  # 12 where nothing else runs; of comparing all pairs, 100


def test_among_generated_rows_an_equal_one_is_found():
    made = tickets(3000)
    assert have_near_duplicate([made[7].upper() + "!"], made, 0.8) == [True]
