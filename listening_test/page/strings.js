// What the page itself says, by language. The study's own texts come from its study file.
//
// A language that is not here is shown in English. `one` forms are for a count of 1.

const EN = {
  title: "Listening test",
  moment: "One moment …",
  agree: "I agree, go on",
  how: "How it works",
  begin: "Begin",
  length: "{n} clips, about {minutes} minutes. You can pause at any time: this browser remembers "
    + "where you were.",
  length_one: "{n} clips, about a minute. You can pause at any time: this browser remembers "
    + "where you were.",
  volume_practice: "First comes a clip for practice. Use it to set a comfortable volume.",
  volume: "Set a comfortable volume at the first clip, and then leave it.",
  volume_screen: "First come a few sounds that check your headphones. Put them on, and set a "
    + "comfortable volume.",
  screen_of: "Headphone check {number} of {total}",
  screen_note: "Three sounds, one after the other. This only works over headphones.",
  screened_title: "Thank you for your time",
  screened_text: "This study needs headphones on both ears, and the check did not find them. You "
    + "can close this page; nothing you did counts against you.",
  back: "Back to Prolific",
  submit: "Submit to MTurk",
  practice: "Practice clip",
  practice_of: "Practice clip {number} of {total}",
  clip_of: "Clip {number} of {total}",
  practice_note: "A clip to get used to the page and to set your volume. It does not count.",
  play: "Play",
  play_again: "Play again",
  stop: "Stop",
  reference: "Reference",
  numbered: "Clip {number}",
  first: "First",
  second: "Second",
  listen: "Listen to the whole clip, then rate it.",
  listen_all: "Listen to every clip to its end, then rate.",
  rate_now: "You can rate it now, or play it again.",
  not_rated: "not rated",
  comment: "Comment (optional)",
  noticed: "What did you notice?",
  next: "Next",
  keys: "Keys: space plays, digits rate, Enter goes on",
  thanks: "Thank you",
  all_saved: "All your ratings are saved. You can close this page.",
  code: "Your completion code:",
  copying: "Your answers are saved. They are now being copied to a second place. This page goes "
    + "on by itself as soon as that is done, usually within a minute; please keep it open.",
  copying_code: "All your ratings are saved. They are now being copied to a second place. Your "
    + "completion code appears here as soon as that is done, usually within a minute; please "
    + "keep this page open.",
  saving: "saving …",
  saved: "saved ✓",
  not_saved: "not saved",
  not_saved_yet: "not saved yet",
  saving_last: "Saving your last rating …",
  keep_open: "Your last rating is not saved yet. {why}. Keep this page open: it tries again by "
    + "itself.",
  why_disk: "The server could not write it",
  why_late: "The server does not answer in time",
  why_gone: "The server cannot be reached",
  trying: "The server cannot be reached. Trying again …",
  preparing: "The clips of this study are still being prepared. This page goes on by itself.",
  late_answer: "The server did not answer within {seconds} seconds.",
  answered: "The server answered {status}.",
  not_played: "The clip could not be played. Check your connection, then press Play again.",
  restarted: "The server was restarted.",
  once_more: "{why} Your answer is still here: play the clip once more, to its end, and press "
    + "Next.",
};

const ZH = {
  title: "听音测试",
  moment: "请稍候……",
  agree: "我同意，继续",
  how: "说明",
  begin: "开始",
  length: "共 {n} 段录音，大约 {minutes} 分钟。您可以随时暂停：本浏览器会记住进度。",
  length_one: "共 {n} 段录音，大约一分钟。您可以随时暂停：本浏览器会记住进度。",
  volume_practice: "首先是一段练习录音，请用它把音量调到舒适的程度。",
  volume: "请在第一段录音时把音量调到舒适的程度，之后不要再改动。",
  volume_screen: "首先是几段用来检查耳机的声音。请戴上耳机，并把音量调到舒适的程度。",
  screen_of: "耳机检查 {number}／{total}",
  screen_note: "依次播放三段声音。只有戴耳机才能分辨。",
  screened_title: "感谢您的时间",
  screened_text: "本研究需要双耳佩戴耳机，而检查没有通过。您可以关闭本页面，这不会对您有任何不利影响。",
  back: "返回 Prolific",
  submit: "提交到 MTurk",
  practice: "练习录音",
  practice_of: "练习录音 {number}／{total}",
  clip_of: "录音 {number}／{total}",
  practice_note: "这段录音用于熟悉页面和调节音量，不计入结果。",
  play: "播放",
  play_again: "再次播放",
  stop: "停止",
  reference: "参考",
  numbered: "录音 {number}",
  first: "第一段",
  second: "第二段",
  listen: "请完整听完录音，然后评分。",
  listen_all: "请把每段录音都听完，然后评分。",
  rate_now: "现在可以评分，也可以再听一遍。",
  not_rated: "未评分",
  comment: "备注（可选）",
  noticed: "您注意到了什么？",
  next: "下一步",
  keys: "按键：空格键播放，数字键评分，回车键继续",
  thanks: "谢谢您",
  all_saved: "您的所有评分都已保存，可以关闭本页面。",
  code: "您的完成代码：",
  copying: "您的答案已保存，正在复制到另一处。完成后本页面会自动继续，通常不到一分钟；请不要关闭本页面。",
  copying_code: "您的所有评分都已保存，正在复制到另一处。完成后这里会显示您的完成代码，通常不到一分钟；"
    + "请不要关闭本页面。",
  saving: "正在保存……",
  saved: "已保存 ✓",
  not_saved: "未保存",
  not_saved_yet: "尚未保存",
  saving_last: "正在保存您的上一次评分……",
  keep_open: "您的上一次评分尚未保存。{why}。请不要关闭本页面，系统会自动重试。",
  why_disk: "服务器无法写入",
  why_late: "服务器没有及时应答",
  why_gone: "无法连接服务器",
  trying: "无法连接服务器，正在重试……",
  preparing: "本研究的录音仍在准备中，本页面会自动继续。",
  late_answer: "服务器在 {seconds} 秒内没有应答。",
  answered: "服务器应答 {status}。",
  not_played: "录音无法播放。请检查网络连接，然后再按播放。",
  restarted: "服务器已重新启动。",
  once_more: "{why}您的答案仍在：请再完整播放一次录音，然后按“下一步”。",
};

const AR = {
  title: "اختبار استماع",
  moment: "لحظة من فضلك …",
  agree: "أوافق، متابعة",
  how: "طريقة الاختبار",
  begin: "ابدأ",
  length: "{n} مقطعًا، نحو {minutes} دقائق. يمكنك التوقف في أي وقت: يتذكر هذا المتصفح موضعك.",
  length_one: "{n} مقاطع، نحو دقيقة. يمكنك التوقف في أي وقت: يتذكر هذا المتصفح موضعك.",
  volume_practice: "يأتي أولًا مقطع للتدريب. استعمله لضبط صوت مريح.",
  volume: "اضبط صوتًا مريحًا عند المقطع الأول، ثم اتركه كما هو.",
  volume_screen: "تأتي أولًا أصوات قليلة لفحص سماعات الرأس. ضعها على أذنيك واضبط صوتًا مريحًا.",
  screen_of: "فحص السماعات {number} من {total}",
  screen_note: "ثلاثة أصوات متتالية. لا ينجح هذا إلا بسماعات الرأس.",
  screened_title: "شكرًا على وقتك",
  screened_text: "تحتاج هذه الدراسة إلى سماعات على الأذنين، ولم ينجح الفحص. يمكنك إغلاق هذه الصفحة، ولن يُحسب ذلك عليك.",
  back: "العودة إلى Prolific",
  submit: "الإرسال إلى MTurk",
  practice: "مقطع تدريب",
  practice_of: "مقطع تدريب {number} من {total}",
  clip_of: "مقطع {number} من {total}",
  practice_note: "مقطع للتعود على الصفحة ولضبط مستوى الصوت. لا يُحتسب.",
  play: "تشغيل",
  play_again: "تشغيل من جديد",
  stop: "إيقاف",
  reference: "المرجع",
  numbered: "المقطع {number}",
  first: "الأول",
  second: "الثاني",
  listen: "استمع إلى المقطع كاملًا، ثم قيّمه.",
  listen_all: "استمع إلى كل مقطع حتى نهايته، ثم قيّم.",
  rate_now: "يمكنك التقييم الآن، أو التشغيل من جديد.",
  not_rated: "بلا تقييم",
  comment: "تعليق (اختياري)",
  noticed: "ماذا لاحظت؟",
  next: "التالي",
  keys: "المفاتيح: المسافة للتشغيل، الأرقام للتقييم، الإدخال للمتابعة",
  thanks: "شكرًا لك",
  all_saved: "حُفظت كل تقييماتك. يمكنك إغلاق هذه الصفحة.",
  code: "رمز الإتمام الخاص بك:",
  copying: "حُفظت إجاباتك، ويجري الآن نسخها إلى مكان ثانٍ. تتابع هذه الصفحة بنفسها عند الانتهاء، عادةً خلال "
    + "دقيقة؛ أبقها مفتوحة.",
  copying_code: "حُفظت كل تقييماتك، ويجري الآن نسخها إلى مكان ثانٍ. يظهر رمز الإتمام هنا عند الانتهاء، عادةً "
    + "خلال دقيقة؛ أبقِ هذه الصفحة مفتوحة.",
  saving: "جارٍ الحفظ …",
  saved: "حُفظ ✓",
  not_saved: "لم يُحفظ",
  not_saved_yet: "لم يُحفظ بعد",
  saving_last: "جارٍ حفظ تقييمك الأخير …",
  keep_open: "لم يُحفظ تقييمك الأخير بعد. {why}. أبقِ هذه الصفحة مفتوحة: تعيد المحاولة بنفسها.",
  why_disk: "تعذّر على الخادم الكتابة",
  why_late: "لم يُجب الخادم في الوقت المناسب",
  why_gone: "تعذّر الوصول إلى الخادم",
  trying: "تعذّر الوصول إلى الخادم. تُعاد المحاولة …",
  preparing: "ما زالت مقاطع هذه الدراسة قيد الإعداد. تتابع هذه الصفحة بنفسها.",
  late_answer: "لم يُجب الخادم خلال {seconds} ثانية.",
  answered: "أجاب الخادم بالرمز {status}.",
  not_played: "تعذّر تشغيل المقطع. تحقق من الاتصال، ثم اضغط تشغيل من جديد.",
  restarted: "أُعيد تشغيل الخادم.",
  once_more: "{why} إجابتك ما زالت هنا: شغّل المقطع مرة أخرى حتى نهايته، ثم اضغط التالي.",
};

const TABLES = { en: EN, zh: ZH, ar: AR };
const RIGHT_TO_LEFT = ["ar"];
let table = EN;

export function speak(language) {
  const base = language.toLowerCase().split("-")[0];
  table = TABLES[base] ?? EN;
  document.documentElement.lang = table === EN ? "en" : language;
  document.documentElement.dir = RIGHT_TO_LEFT.includes(base) ? "rtl" : "ltr";
  for (const element of document.querySelectorAll("[data-say]")) {
    element.textContent = say(element.dataset.say);
  }
}

export function say(key, values = {}) {
  return table[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
