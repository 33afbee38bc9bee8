// The runner's drafts of a text, as it goes on: reads how many guesses at most and the text's tokens, and writes each
// draft in a line of its own, an empty one where there is none.
#include <algorithm>
#include <cstdint>
#include <iostream>
#include <vector>

#include "drafts.h"

int main() {
  int64_t most = 0;
  std::cin >> most;
  std::vector<int64_t> text;
  for (int64_t token; std::cin >> token;) text.push_back(token);
  lfm2::Lookup lookup;
  lfm2::Drafts drafts(lookup);
  for (size_t at = 1; at < text.size();) {
    const std::vector<int64_t> seen(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at));
    const auto draft = drafts.propose(seen, std::min(most, static_cast<int64_t>(text.size() - at)));
    size_t right = 0;
    while (right < draft.size() && draft[right] == text[at + right]) ++right;
    if (!draft.empty()) drafts.judged(static_cast<int64_t>(draft.size()), static_cast<int64_t>(right));
    for (const int64_t guess : draft) std::cout << guess << ' ';
    std::cout << '\n';
    at += right + 1;
  }
}
