// Several clips on one clock: all of them run, one is heard. A switch changes two gains and no position.

const FADE = 0.004; // seconds: long enough for no click, too short to be heard as a gap

export class Deck {
  constructor(context) {
    this.context = context;
    this.output = context.createGain();
    this.output.connect(context.destination);
    this.clips = [];
    this.active = 0;
    this.offset = 0;
    this.startedAt = null;
    this.loops = false;
    this.matched = true;
    this.onended = () => {};
  }

  // `clips`: [{buffer, lufs}], lufs null for silence.
  load(clips) {
    this.stop();
    this.clips = clips.map((clip) => ({ ...clip, source: null, gain: null }));
    this.active = 0;
    this.offset = 0;
  }

  // Looped, all end where the shortest ends, or they would drift apart.
  get duration() {
    const lengths = this.clips.map((clip) => clip.buffer.duration);
    return lengths.length ? (this.loops ? Math.min(...lengths) : Math.max(...lengths)) : 0;
  }
  get playing() { return this.startedAt !== null; }

  get position() {
    if (!this.playing) return this.offset;
    const at = Math.max(0, this.context.currentTime - this.startedAt);
    return this.loops && this.duration ? at % this.duration : Math.min(at, this.duration);
  }

  play(from = this.offset) {
    this.stop();
    const at = this.context.currentTime + 0.03;
    const start = from >= this.duration - 0.01 ? 0 : from;
    this.clips.forEach((clip, index) => {
      clip.gain = this.context.createGain();
      clip.gain.gain.value = index === this.active ? this.level(clip) : 0;
      clip.gain.connect(this.output);
      clip.source = this.context.createBufferSource();
      clip.source.buffer = clip.buffer;
      clip.source.loop = this.loops;
      clip.source.loopEnd = this.duration;
      clip.source.connect(clip.gain);
      if (start < clip.buffer.duration) clip.source.start(at, start);
    });
    const longest = this.clips.reduce((one, other) => (one.buffer.duration >= other.buffer.duration ? one : other));
    longest.source.onended = () => { if (this.playing && !this.loops) { this.stop(); this.offset = 0; this.onended(); } };
    this.startedAt = at - start;
  }

  stop() {
    if (this.playing) this.offset = this.position;
    for (const clip of this.clips) {
      if (!clip.source) continue;
      clip.source.onended = null;
      try { clip.source.stop(); } catch { /* it never started */ }
      clip.source.disconnect();
      clip.gain.disconnect();
      clip.source = clip.gain = null;
    }
    this.startedAt = null;
  }

  seek(seconds) {
    const at = Math.min(Math.max(0, seconds), this.duration);
    if (this.playing) this.play(at);
    else this.offset = at;
  }

  // The moment at which the other clip is the one that is heard, by the context's clock.
  use(index, at = this.context.currentTime) {
    const before = this.clips[this.active];
    const next = this.clips[index];
    this.active = index;
    if (this.playing && before !== next) {
      before.gain.gain.setValueAtTime(this.level(before), at);
      before.gain.gain.linearRampToValueAtTime(0, at + FADE);
      next.gain.gain.setValueAtTime(0, at);
      next.gain.gain.linearRampToValueAtTime(this.level(next), at + FADE);
    }
    return at;
  }

  // Nobody is made louder than it was, or the loudest peaks would clip.
  level(clip) {
    if (!this.matched) return 1;
    const heard = this.clips.map((each) => each.lufs).filter((lufs) => lufs !== null && lufs !== undefined);
    if (!heard.length || clip.lufs === null || clip.lufs === undefined) return 1;
    return 10 ** ((Math.min(...heard) - clip.lufs) / 20);
  }

  match(matched) {
    this.matched = matched;
    this.clips.forEach((clip, index) => { if (clip.gain && index === this.active) clip.gain.gain.value = this.level(clip); });
  }

  loop(loops) {
    const at = this.position;
    this.loops = loops;
    if (this.playing) this.play(at);
  }
}
