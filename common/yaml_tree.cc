#include "common/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <exception>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>

#include "absl/strings/str_cat.h"
#include "common/utf8.h"

namespace offshoot {
namespace {

// Ends the parse early; never leaves this file.
struct Stop : std::exception {
  explicit Stop(YamlFault fault) : fault(std::move(fault)) {}
  YamlFault fault;
};

class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const YamlBounds& bounds) : bounds_(bounds) {}

  YamlNode TakeRoot() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) {
      throw Stop({Line(mark), "a second document begins here; put one in each file"});
    }
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Add(Make(mark, YamlKind::kNull, anchor));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw Stop({Line(mark), "an alias (*name) is not taken here; write the value out"});
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node = Make(mark, YamlKind::kScalar, anchor);
    CheckTag(mark, tag);
    node.text = value;
    node.quoted = tag == "!";
    Add(std::move(node));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    CheckTag(mark, tag);
    Open(Make(mark, YamlKind::kList, anchor));
  }
  void OnSequenceEnd() override { Close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    CheckTag(mark, tag);
    Open(Make(mark, YamlKind::kMap, anchor));
  }
  void OnMapEnd() override { Close(); }

 private:
  // A list or map that is still being read, and a map's key that waits for its value.
  struct OpenNode {
    YamlNode node;
    YamlNode key;
    bool has_key = false;
  };

  static int Line(const YAML::Mark& mark) { return mark.line + 1; }

  static void CheckTag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!") {
      throw Stop({Line(mark), "a tag (!name) is not taken here; write the plain value"});
    }
  }

  YamlNode Make(const YAML::Mark& mark, YamlKind kind, YAML::anchor_t anchor) {
    if (anchor != 0) {
      throw Stop({Line(mark), "an anchor (&name) is not taken here; write each value out"});
    }
    if (++nodes_ > bounds_.nodes) {
      throw Stop({Line(mark), absl::StrCat("there are more than ", bounds_.nodes,
                                           " values; this is too large for such a file")});
    }
    YamlNode node;
    node.kind = kind;
    node.line = Line(mark);
    return node;
  }

  void Open(YamlNode node) {
    if (open_.size() >= bounds_.depth) {
      throw Stop({node.line, absl::StrCat("lists and maps are nested more than ", bounds_.depth,
                                          " deep; flatten them")});
    }
    open_.push_back({std::move(node), {}, false});
  }

  void Close() {
    YamlNode node = std::move(open_.back().node);
    open_.pop_back();
    Add(std::move(node));
  }

  void Add(YamlNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    OpenNode& parent = open_.back();
    if (parent.node.kind == YamlKind::kList) {
      parent.node.items.push_back(std::move(node));
    } else if (!parent.has_key) {
      parent.key = std::move(node);
      parent.has_key = true;
    } else {
      parent.node.entries.push_back({std::move(parent.key), std::move(node)});
      parent.has_key = false;
    }
  }

  const YamlBounds bounds_;
  YamlNode root_;
  std::vector<OpenNode> open_;
  std::size_t nodes_ = 0;
  int documents_ = 0;
};

}  // namespace

YamlResult ParseYamlTree(absl::string_view text, const YamlBounds& bounds) {
  YamlResult result;
  if (text.size() > bounds.bytes) {
    result.faults.push_back({0, absl::StrCat("the file has ", text.size(), " bytes; at most ",
                                             bounds.bytes, " are taken")});
    return result;
  }
  if (text.find('\0') != absl::string_view::npos) {
    result.faults.push_back({0, "the file holds a NUL byte; save it as UTF-8 text"});
    return result;
  }
  if (const std::size_t bad = FirstInvalidUtf8(text); bad != absl::string_view::npos) {
    int line = 1;
    for (const char c : text.substr(0, bad)) line += c == '\n';
    result.faults.push_back({line, "a byte here is not UTF-8; save the file as UTF-8 text"});
    return result;
  }
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    TreeBuilder builder(bounds);
    while (parser.HandleNextDocument(builder)) {
    }
    result.root = builder.TakeRoot();
  } catch (const Stop& stop) {
    result.faults.push_back(stop.fault);
  } catch (const YAML::Exception& error) {
    result.faults.push_back({error.mark.line + 1, absl::StrCat("this is not YAML: ", error.msg)});
  } catch (const std::exception& error) {
    result.faults.push_back({0, absl::StrCat("this is not YAML: ", error.what())});
  }
  return result;
}

std::string DescribeYaml(const YamlNode& node) {
  constexpr std::size_t kLongest = 60;
  switch (node.kind) {
    case YamlKind::kNull:
      return "nothing";
    case YamlKind::kList:
      return "a list";
    case YamlKind::kMap:
      return "a map";
    case YamlKind::kScalar:
      break;
  }
  if (node.text.size() <= kLongest) return QuoteYaml(node.text);
  return QuoteYaml(absl::StrCat(Utf8Prefix(node.text, kLongest), "..."));
}

std::string QuoteYaml(absl::string_view text) {
  // JSON's escapes are a part of YAML's; bytes that are not UTF-8 become the replacement character.
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace offshoot
