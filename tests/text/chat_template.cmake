# Tests of chat templates.
fth_test(chat_template_test LIBRARIES fth_text Boost::json SOURCES ${CMAKE_CURRENT_LIST_DIR}/chat_template_test.cpp)
