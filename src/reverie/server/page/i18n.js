/** All that the page says, in English and Chinese. */

const WORDS = {
  otherLanguage: ["中文", "English"],
  skip: ["Skip to the content", "跳到内容"],
  rooms: ["Rooms", "房间"],
  draw: ["Draw", "绘画"],
  animate: ["Animate", "动画"],
  compare: ["Compare", "比较"],
  music: ["Music", "音乐"],
  gallery: ["Gallery", "画廊"],
  model: ["Model", "模型"],
  defaultModel: ["own model", "默认模型"],
  theme: ["Light or dark", "浅色或深色"],

  sketch: ["Sketch", "草图"],
  paper: [
    "Canvas to sketch on. Arrow keys move the pen, with Shift farther; hold Space to paint.",
    "草图画布。方向键移动画笔，按住 Shift 移得更远；按住空格键作画。",
  ],
  ghost: ["Sketch here, or leave it empty", "在这里画草图，也可以留空"],
  tools: ["Tools", "工具"],
  tool: ["Tool", "工具"],
  brush: ["Brush", "画笔"],
  eraser: ["Eraser", "橡皮"],
  line: ["Line", "直线"],
  rectangle: ["Rectangle", "矩形"],
  ellipse: ["Ellipse", "椭圆"],
  fill: ["Fill", "填充"],
  colour: ["Colour", "颜色"],
  colours: ["Colours", "颜色"],
  black: ["black", "黑色"],
  white: ["white", "白色"],
  brown: ["brown", "棕色"],
  red: ["red", "红色"],
  yellow: ["yellow", "黄色"],
  green: ["green", "绿色"],
  blue: ["blue", "蓝色"],
  pink: ["pink", "粉色"],
  maskAlone: ["A mask needs a picture under it; this one is drawn from the words alone.", "蒙版下面需要有图片；这次只按文字来画。"],
  thickness: ["Thickness of the brush", "画笔粗细"],
  undo: ["Undo", "撤销"],
  redo: ["Redo", "重做"],
  upload: ["Put a picture on the canvas", "把图片放到画布上"],
  clear: ["Clear the canvas", "清空画布"],
  mask: ["Mask", "蒙版"],
  freedom: ["Freedom", "自由度"],
  freedomStay: ["strokes stay as they are, the rest is drawn", "笔触保持不变，其余部分由模型来画"],
  freedomNear: ["close to the sketch", "贴近草图"],
  freedomGuide: ["guided by the sketch", "以草图为引导"],
  freedomFree: ["the sketch is a hint", "草图只是提示"],

  picture: ["Picture", "图片"],
  invite: ["Say what to draw, or try one of these", "说说要画什么，或者试试这些"],
  doings: ["With this picture", "对这张图片"],
  variations: ["Variations", "变体"],
  paintOver: ["Paint over", "在上面画"],
  toFilm: ["Into the film", "放进动画"],
  explain: ["Which word where", "哪个词在哪里"],
  download: ["Download", "下载"],
  recent: ["Drawn just now", "刚画好的"],
  prompt: ["What to draw", "要画什么"],
  promptHint: ["a bear on a green background", "绿色背景上的一只熊"],
  live: ["Live", "实时"],
  drawIt: ["Draw", "绘画"],
  settings: ["Settings", "设置"],
  negative: ["Keep away from", "避免出现"],
  negativeHint: ["negative prompt", "反向提示词"],
  sampler: ["Sampler", "采样器"],
  schedule: ["Schedule", "噪声调度"],
  steps: ["Steps", "步数"],
  guidance: ["Guidance", "引导强度"],
  seed: ["Seed", "种子"],
  width: ["Width", "宽度"],
  height: ["Height", "高度"],
  count: ["How many", "数量"],
  bestOf: ["Best of", "择优"],
  style: ["Style", "风格"],
  keepStyle: ["Keep the words as a style", "把文字存为风格"],
  forgetStyle: ["Forget the style", "删除该风格"],
  hires: ["Second pass, times", "二次放大倍数"],
  none: ["none", "无"],
  lora: ["Add a LoRA", "添加 LoRA"],
  all: ["keep all", "全部保留"],
  own: ["auto", "自动"],
  random: ["random", "随机"],
  restore: ["Settings of a picture…", "读取图片的设置…"],
  restored: ["Settings of “{0}” are back.", "已恢复“{0}”的设置。"],
  alsoAsked: ["Also asked for: {0}", "还包括：{0}"],
  notTaken: ["Not taken over: {0}.", "未采用：{0}。"],
  initMissing: ["The picture that it was drawn over is not here.", "它所基于的图片不在这里。"],
  wildcards: [
    "{red|blue} picks one at random. A style goes behind the prompt, or around it where it says {prompt}. Drop a picture beside the canvas to get its settings back, also of A1111 and ComfyUI.",
    "{红色|蓝色} 会随机选一个。风格加在提示词之后，写有 {prompt} 时则包在提示词外面。把图片拖到画布旁边即可恢复它的设置，A1111 和 ComfyUI 的图片也可以。",
  ],
  knows: ["What the bundled model knows: {0} things, on twelve coloured grounds", "自带模型认识的东西：{0} 种，十二种颜色的背景"],
  filter: ["Filter", "筛选"],
  drawn: ["{0}, seed {1}", "{0}，种子 {1}"],

  animateTitle: ["From one picture to the next", "从一张图到下一张"],
  addKeyframe: ["Add a keyframe", "添加关键帧"],
  keyframe: ["Keyframe {0}", "关键帧 {0}"],
  keyframeHint: ["what it shows", "画面内容"],
  keyframePicture: ["A picture for keyframe {0}", "关键帧 {0} 的图片"],
  removeKeyframe: ["Remove keyframe {0}", "删除关键帧 {0}"],
  seconds: ["Seconds", "秒"],
  fps: ["Frames a second", "每秒帧数"],
  easing: ["Pace", "节奏"],
  linear: ["even", "匀速"],
  smooth: ["gentle", "柔和"],
  ease_in: ["slow start", "慢起"],
  ease_out: ["slow end", "慢止"],
  hold: ["rest on keyframes", "在关键帧停留"],
  jump: ["cuts", "跳切"],
  loop: ["Loop", "循环"],
  pingPong: ["There and back", "往返"],
  film: ["Make the film", "生成动画"],
  screenGhost: ["The film comes here", "动画会出现在这里"],
  frames: ["Frames so far", "已完成的帧"],
  theFilm: ["The film", "动画"],
  frame: ["Frame {0}", "第 {0} 帧"],

  compareTitle: ["Which words fit which picture", "哪些词符合哪张图片"],
  dropPictures: ["Drop pictures here", "把图片拖到这里"],
  choose: ["Choose pictures…", "选择图片…"],
  pictures: ["Pictures to compare", "要比较的图片"],
  sentences: ["Sentences, one a line", "句子，每行一句"],
  someSentences: ["a bear\nan apple\na rocket\na green background", "一只熊\n一个苹果\n一枚火箭\n绿色背景"],
  compareIt: ["Compare", "比较"],
  comparing: ["Looking…", "正在看…"],
  heat: ["Similarity of pictures and sentences", "图片与句子的相似度"],
  needPictures: ["Give pictures, sentences, or both.", "请给出图片、句子，或两者都给。"],
  takeAway: ["Take away {0}", "移除 {0}"],
  pictureNumber: ["Picture {0}", "图片 {0}"],
  likely: ["Most likely", "最可能的"],
  searchFolder: ["Search the indexed folder", "搜索已索引的文件夹"],
  search: ["Search", "搜索"],
  found: ["Found pictures", "找到的图片"],

  musicTitle: ["Hear what you say", "听见你所说的"],
  from: ["Play", "演奏"],
  between: ["Between the two", "两者之间"],
  to: ["On the way to", "走向"],
  musicGhost: ["Say what to play, or press one of the examples", "说说要演奏什么，或者点一个例子"],
  musicHint: ["jazz saxophone with drums", "爵士萨克斯和鼓"],
  maybe: ["another, if you like", "另一个，可不填"],
  bpm: ["Beats a minute", "每分钟拍数"],
  play: ["Play", "播放"],
  pause: ["Pause", "暂停"],
  goOn: ["Go on", "继续"],
  endless: ["Endless", "无尽播放"],
  stop: ["Stop", "停止"],
  seedSound: ["Start from a sound…", "从一段声音开始…"],
  record: ["Record", "录音"],
  forgetSound: ["Forget the sound", "不用这段声音"],
  spectrogram: ["Spectrogram of what is played", "正在播放的频谱图"],
  playing: ["{0}, seed {1}, {2} s", "{0}，种子 {1}，{2} 秒"],
  noMicrophone: ["The browser gives no microphone here.", "浏览器没有提供麦克风。"],
  notSound: ["“{0}” is no sound that the browser can read.", "浏览器无法读取声音“{0}”。"],

  kind: ["Kind", "类型"],
  anything: ["everything", "全部"],
  text_to_image: ["pictures from words", "文字生成的图片"],
  image_to_image: ["pictures from pictures", "图片生成的图片"],
  inpaint: ["painted parts", "局部重绘"],
  animation: ["films", "动画"],
  more: ["More", "更多"],
  emptyGallery: ["Nothing here yet. What you draw, animate and play is kept here.", "这里还没有作品。你画的、做的动画和音乐都会保存在这里。"],
  nothingFound: ["Nothing fits this filter.", "没有符合筛选条件的作品。"],
  piece: ["A piece of the gallery", "画廊作品"],
  reuse: ["Use its settings", "使用它的设置"],
  delete: ["Delete", "删除"],
  close: ["Close", "关闭"],

  cancel: ["Cancel", "取消"],
  cancelled: ["Cancelled.", "已取消。"],
  sending: ["Sending…", "正在发送…"],
  starting: ["Starting…", "即将开始…"],
  next: ["Next in line…", "下一个就是…"],
  waiting: ["Waiting: {0} before this one", "排队中：前面还有 {0} 个"],
  done: ["Done.", "完成。"],
  progressBar: ["How far it is", "进度"],
  progress: ["{0} of {1}", "{0} / {1}"],
  unreachable: ["The server does not answer. Is it still running?", "服务器没有响应。它还在运行吗？"],
  busy: ["Too much is waiting already. Try again in a moment.", "排队的任务太多，请稍后再试。"],
  saysNothing: ["“{0}” does not say how it was made.", "“{0}”没有记录它是怎样生成的。"],
  notPicture: ["“{0}” is no picture that the browser can read.", "浏览器无法读取图片“{0}”。"],
};

const LANGUAGES = ["en", "zh-CN"];
let chosen = localStorage.language ?? (navigator.language.startsWith("zh") ? "zh-CN" : "en");

/** The language that is spoken: "en" or "zh", as the concepts name it. */
export const language = () => chosen.slice(0, 2);

/** Return the words of a key, with {0}, {1}, ... filled in. */
export function t(key, ...values) {
  const words = WORDS[key]?.[LANGUAGES.indexOf(chosen)] ?? key;
  return values.length ? words.replace(/\{(\d)\}/g, (_, at) => values[at]) : words;
}

/** Fill in the words of all elements that ask for them by data-t, data-t-label and data-t-hint. */
export function translate(root = document) {
  document.documentElement.lang = chosen;
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-hint]")) element.placeholder = t(element.dataset.tHint);
  for (const element of root.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", t(element.dataset.tLabel));
    if (element.matches("button, input")) (element.closest("label.icon") ?? element).title = t(element.dataset.tLabel);
  }
}

/** Speak the other language; "language" is dispatched on the document, for what was said by hand. */
export function switchLanguage() {
  localStorage.language = chosen = LANGUAGES.find((one) => one !== chosen);
  translate();
  document.dispatchEvent(new Event("language"));
}
