#include "log.hpp"

#include <array>
#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace superinfer_tensorrt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void log(Severity severity, const char* format, ...) noexcept {
  nvinfer1::ILoggerFinder* finder = logger_finder.load(std::memory_order_acquire);
  nvinfer1::ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
  if (logger == nullptr) return;
  std::array<char, 512> line{};
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line.data(), line.size(), format, arguments);
  va_end(arguments);
  logger->log(severity, line.data());
}

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
  logger_finder.store(finder, std::memory_order_release);
}

}  // namespace superinfer_tensorrt
