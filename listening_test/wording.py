"""The standard questions, labels and texts in the languages that the rater's page speaks.

English is the source; what has no translation here stays English. A study's own words are not
translated by anybody but its author (`languages:` of the study file). Translations of a scale are
the project's own, after the words in common use: not every one of them was fitted to the
original's distances by listeners, so each has a scale id of its own and the report prints it.
"""

from __future__ import annotations

from dataclasses import replace

from listening_test.methods import BANDS, Question
from listening_test.screening import QUESTIONS

_ZH = {
    "Excellent": "优", "Good": "良", "Fair": "中", "Poor": "差", "Bad": "劣",
    "Complete relaxation possible; no effort required": "完全放松，毫不费力",
    "Attention necessary; no appreciable effort required": "需要注意，但不明显费力",
    "Moderate effort required": "需要中等程度的努力",
    "Considerable effort required": "需要相当大的努力",
    "No meaning understood with any feasible effort": "再努力也听不懂",
    "Inaudible": "听不出劣化", "Audible but not annoying": "听得出，但不讨厌",
    "Slightly annoying": "稍有些讨厌", "Annoying": "讨厌", "Very annoying": "非常讨厌",
    "Much better": "好很多", "Better": "较好", "Slightly better": "稍好",
    "About the same": "大致相同", "Slightly worse": "稍差", "Worse": "较差",
    "Much worse": "差很多",
    "Not distorted": "没有失真", "Slightly distorted": "稍有失真",
    "Somewhat distorted": "有些失真", "Fairly distorted": "失真较大",
    "Very distorted": "失真非常大",
    "Not noticeable": "察觉不到", "Slightly noticeable": "稍可察觉",
    "Noticeable but not intrusive": "可察觉，但不妨碍", "Somewhat intrusive": "有些妨碍",
    "Very intrusive": "非常妨碍",
    "No difference": "没有区别",
    "How natural does the speech sound?": "这段语音听起来有多自然？",
    "What is the quality of the speech?": "这段语音的质量如何？",
    "What effort is required to understand the meaning of the sentence?":
        "听懂这句话需要费多大力？",
    "How is the degradation of the second clip against the first?":
        "与第一段相比，第二段的劣化程度如何？",
    "The naturalness of the second clip compared with the first is:":
        "与第一段相比，第二段的自然程度：",
    "The quality of the second clip compared with the first is:": "与第一段相比，第二段的质量：",
    "The ease of understanding of the second clip compared with the first is:":
        "与第一段相比，第二段的易懂程度：",
    "Which of the two sounds more natural?": "两段中哪一段听起来更自然？",
    "Which of the two has the better quality?": "两段中哪一段质量更好？",
    "Which of the two is easier to understand?": "两段中哪一段更容易听懂？",
    "Which of the two is X?": "两段中哪一段是 X？",
    "How is the quality of each clip, compared with the reference?":
        "与参考相比，每段录音的质量如何？",
    "Listen to the speech alone. How distorted is it?": "只听语音：失真有多大？",
    "Listen to the background alone. How noticeable is it?": "只听背景：背景声有多明显？",
    "What is the overall quality of what you heard?": "您听到的声音整体质量如何？",
    "Which of the three tones was the softest?": "三个声音中哪一个最轻？",
    "In which of the three noises was a faint tone hidden?": "三段噪声中哪一段藏有微弱的音调？",
    "Which of the two has less noise?": "两段中哪一段噪声较小？",
    "The first": "第一个", "The second": "第二个", "The third": "第三个",
    "I hear no difference": "听不出区别",
}  # fmt: skip
_AR = {
    "Excellent": "ممتاز", "Good": "جيد", "Fair": "متوسط", "Poor": "ضعيف", "Bad": "سيئ",
    "Complete relaxation possible; no effort required": "استرخاء تام، بلا أي جهد",
    "Attention necessary; no appreciable effort required": "يلزم الانتباه، بلا جهد يُذكر",
    "Moderate effort required": "يلزم جهد متوسط",
    "Considerable effort required": "يلزم جهد كبير",
    "No meaning understood with any feasible effort": "لا يُفهم المعنى مهما بُذل من جهد",
    "Inaudible": "غير مسموع", "Audible but not annoying": "مسموع لكنه غير مزعج",
    "Slightly annoying": "مزعج قليلًا", "Annoying": "مزعج", "Very annoying": "مزعج جدًا",
    "Much better": "أفضل بكثير", "Better": "أفضل", "Slightly better": "أفضل قليلًا",
    "About the same": "متماثلان تقريبًا", "Slightly worse": "أسوأ قليلًا", "Worse": "أسوأ",
    "Much worse": "أسوأ بكثير",
    "Not distorted": "غير مشوَّه", "Slightly distorted": "مشوَّه قليلًا",
    "Somewhat distorted": "مشوَّه بعض الشيء", "Fairly distorted": "مشوَّه إلى حد كبير",
    "Very distorted": "مشوَّه جدًا",
    "Not noticeable": "غير ملحوظة", "Slightly noticeable": "ملحوظة قليلًا",
    "Noticeable but not intrusive": "ملحوظة لكنها لا تضايق",
    "Somewhat intrusive": "مضايقة بعض الشيء",
    "Very intrusive": "مضايقة جدًا",
    "No difference": "لا فرق",
    "How natural does the speech sound?": "ما مدى طبيعية الكلام؟",
    "What is the quality of the speech?": "ما جودة الكلام؟",
    "What effort is required to understand the meaning of the sentence?":
        "ما الجهد اللازم لفهم معنى الجملة؟",
    "How is the degradation of the second clip against the first?":
        "ما مدى تردّي المقطع الثاني مقارنةً بالأول؟",
    "The naturalness of the second clip compared with the first is:":
        "طبيعية المقطع الثاني مقارنةً بالأول:",
    "The quality of the second clip compared with the first is:":
        "جودة المقطع الثاني مقارنةً بالأول:",
    "The ease of understanding of the second clip compared with the first is:":
        "سهولة فهم المقطع الثاني مقارنةً بالأول:",
    "Which of the two sounds more natural?": "أيّ المقطعين أكثر طبيعية؟",
    "Which of the two has the better quality?": "أيّ المقطعين أفضل جودة؟",
    "Which of the two is easier to understand?": "أيّ المقطعين أسهل فهمًا؟",
    "Which of the two is X?": "أيّ المقطعين هو X؟",
    "How is the quality of each clip, compared with the reference?":
        "ما جودة كل مقطع مقارنةً بالمرجع؟",
    "Listen to the speech alone. How distorted is it?": "أنصت إلى الكلام وحده. ما مدى تشوّهه؟",
    "Listen to the background alone. How noticeable is it?":
        "أنصت إلى الخلفية وحدها. ما مدى وضوحها؟",
    "What is the overall quality of what you heard?": "ما الجودة العامة لما سمعت؟",
    "Which of the three tones was the softest?": "أيّ النغمات الثلاث كانت الأخفت؟",
    "In which of the three noises was a faint tone hidden?":
        "في أيّ من أصوات الضجيج الثلاثة اختفت نغمة خافتة؟",
    "Which of the two has less noise?": "أيّ المقطعين أقل ضجيجًا؟",
    "The first": "الأول", "The second": "الثاني", "The third": "الثالث",
    "I hear no difference": "لا أسمع فرقًا",
}  # fmt: skip
_TABLES = {"zh": _ZH, "ar": _AR}

CONSENT = {
    "en": "You will hear short clips of speech and say how they sound to you. We keep your "
    "scores, your comments, when and how long you listened, and what kind of device and browser "
    "you use, under a random number. We do not keep your name or your network address. You may "
    "stop at any time by closing this page, or withdraw: the button below each page then deletes "
    "all you gave.",
    "zh": "您将听到一些简短的语音，并说出您的感受。我们会以一个随机编号保存您的评分、备注"
    "、收听的时间和时长，以及设备和浏览器的类型，不保存您的姓名或网络地址。您可以随时关闭本页面来停止，"
    "也可以退出研究：每页下方的按钮会删除您提供的一切。",
    "ar": "ستسمع مقاطع كلام قصيرة وتقول كيف تبدو لك. نحتفظ بتقييماتك وتعليقاتك ووقت استماعك ومدته "
    "ونوع جهازك ومتصفحك تحت رقم عشوائي، ولا نحتفظ باسمك ولا بعنوان شبكتك. "
    "يمكنك التوقف في أي وقت بإغلاق هذه الصفحة، "
    "أو الانسحاب: الزر أسفل كل صفحة يحذف كل ما قدمته.",
}
# Nothing of headphones: the page asks for them where the study tests for them.
INSTRUCTIONS = {
    "en": "Find a quiet place. Play each clip to its end, as often as you like, then give the "
    "answer that fits best. There are no right answers.",
    "zh": "请找一个安静的地方。把每段录音听到结尾，可以重复播放，"
    "然后选择最合适的答案。答案没有对错之分。",
    "ar": "اختر مكانًا هادئًا. شغّل كل مقطع حتى نهايته، كما تشاء من المرات، "
    "ثم اختر الإجابة الأنسب. لا توجد إجابات صحيحة.",
}


def base(language: str) -> str:
    """The language of a tag such as zh-CN."""
    return language.lower().split("-")[0]


def standard(text: str, language: str) -> str:
    """A standard question or label in a language; the English one where there is no other."""
    return _TABLES.get(base(language), {}).get(text, text)


def in_language(question: Question, language: str) -> Question:
    """A standard question in a language: its scale id tells a wording that is not English."""
    labels = tuple(standard(label, language) for _, label in question.options)
    text = standard(question.text, language)
    if text == question.text:
        return question
    options = tuple((value, label) for (value, _), label in zip(
        question.options, labels, strict=True))  # fmt: skip
    scale_id = f"{question.scale_id}-{base(language)}"
    return replace(question, text=text, options=options, scale_id=scale_id)


def bands(language: str) -> tuple[str, ...]:
    """BS.1534's bands, best first."""
    return tuple(standard(label, language) for label in BANDS)


def screen_words(language: str) -> dict[str, str]:
    """The screens' questions and answers: English, and what the page shows for it."""
    english = [text for q in QUESTIONS.values() for text in (q.text, *dict(q.options).values())]
    return {text: standard(text, language) for text in english}
