// Jobs come as JSON on stdin and results leave as JSON on stdout; whatever else is printed goes to stderr.
import { text } from "node:stream/consumers";

console.log = console.info = console.error;

export const job = JSON.parse(await text(process.stdin));

export function finish(result) {
  process.stdout.write(JSON.stringify(result) + "\n", () => process.exit(0));
}
