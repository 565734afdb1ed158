"""Words for the spelling tasks: a file with a word a line, or a built-in list of common English words."""

from __future__ import annotations

from pathlib import Path

_COMMON_WORDS = """
able about above across act add afraid after again age agree air almost alone along already also always among amount
ancient angle animal answer appear apple area arm army arrive art ask autumn away baby back bag balance ball bamboo
banana bank basket battle beach bear beautiful because become bed before begin behind believe bell belong beneath
between beyond bicycle bird birthday bitter black blanket blood blossom blue board boat body bone book borrow bottle
bottom box boy branch brave bread breakfast breathe bridge bright bring broad broken brother brown build burn business
butter butterfly button buy cake calendar call camera candle captain capture careful carpet carry castle cat catch
cattle caught cause cellar center century certain chain chair chance change cheese cherry chicken child chimney
chocolate choose church circle city class clean clear climb clock cloth cloud coast coat coffee cold collect color
column committee common compare complete concert connect consider contain continue control cook copper corner correct
cotton count country courage course cousin cover create cross crowd curious current curtain cut dance danger dark
daughter day decide deep deliver describe desert design desk develop dictionary different difficult dinner direction
discover distance divide doctor dog dollar door double dragon draw dream dress drink drive during early earth east easy
edge egg eight electric elephant eleven empty energy engine enjoy enough enter equal evening every evidence example
excellent except exercise expect experience explain eye fair family famous farmer father favorite feather february
fence field fifteen figure finger finish fire fish flag flight floor flower follow food foot forest forget forward
fourteen freedom fresh friend front fruit full garden gather gentle giraffe glass goal gold good government grain
grass great green grocery ground group grow guess guitar hair half hammer hand happen happy harbor harvest health heart
heavy hidden history hold hole holiday honey horse hospital hour house however human hundred hungry hurry ice idea
imagine important inch include increase indeed industry insect instead invent island issue jacket jelly journey jungle
kangaroo keep kettle key kitchen kitten knee knife knock know ladder language large laugh learn leather left lemon
lesson letter level library light linen listen little lizard lonely lunch machine magic manner market marriage matter
meadow measure meeting melody member message middle million minute mirror mississippi model moment money month morning
mother mountain mouse mouth music narrow nature necessary needle neighbor nephew never night nineteen noise north nothing
notice number object ocean office often onion opinion opposite orange order ordinary other oxygen paint paper parallel
parent pattern peace pencil people pepper perhaps person piano picture pillow planet plant pleasure pocket poem
possible potato practice prepare present president pretty problem produce promise proper protect pumpkin puzzle quarter
queen question quick quiet rabbit radio rain raspberry reason receive record remember repeat reply result ribbon rice
river robin rocket root rough rubber sailor salad sandwich satellite saturday scatter school science season second secret
seed seldom sentence separate seven shadow shallow sheep shelter shoulder shower silence silver simple sister sleep
slippery smooth snow soldier sorry south speak special spring square squirrel station steel stomach stone story
strawberry street strong student success sudden suffer sugar summer supper surface surprise swallow sweet table teacher
tennessee terrible thank theater thirteen thought thousand through thunder ticket tiger together tomato tomorrow
tongue touch toward traffic travel treasure tree trouble tunnel turtle twelve umbrella under universe until useful
valley vegetable velvet village violin visit voice volcano voyage wagon wander warm water weather wednesday welcome
whether whisper whistle white willow window winter wisdom without woman wonder wood yellow yesterday young zebra
"""

COMMON_WORDS: tuple[str, ...] = tuple(_COMMON_WORDS.split())


def load_words(path: Path | None = None) -> tuple[str, ...]:
    """The words of a file, one a line, in lower case; those with other signs than a to z are left out. None: built in.

    Raises `ValueError` naming a file that cannot be read or holds no word.
    """
    if path is None:
        return COMMON_WORDS
    try:
        lines = path.read_text(encoding="utf-8").lower().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a list of words ({error})") from None
    words = tuple(word for word in dict.fromkeys(lines) if word.isascii() and word.isalpha())
    if not words:
        raise ValueError(f"{path} holds no word of the letters a to z")
    return words
