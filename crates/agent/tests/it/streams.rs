//! Questions to the inside of servers, refused screens, and measurements.

use nephos_driver::{Answer, Power, Question, simulated::SimulatedHost};
use nephos_node_api::{
    Duplex, FetchReport, ImageSource, Resolution, StreamPurpose, UsageQuery, UsageSample, WantedPower, frame,
};
use nephos_types::{Error, Result, ServerId};

use crate::{
    Running,
    fake::{Fake, server},
    images::image,
};

async fn stream(control: &Fake, purpose: StreamPurpose) -> Result<Box<dyn Duplex>> {
    let wanted = control.request(purpose);
    let (id, opened) = control.streams.lock().await.recv().await.unwrap();
    assert_eq!(id, wanted);
    opened
}

async fn ask(control: &Fake, server: ServerId, question: &Question) -> Result<Answer> {
    let mut stream = stream(control, StreamPurpose::Ask { server }).await?;
    ask_on(&mut stream, question).await
}

async fn ask_on(stream: &mut Box<dyn Duplex>, question: &Question) -> Result<Answer> {
    frame::write(stream, question).await?;
    frame::read::<Result<Answer, Error>>(stream).await?
}

#[tokio::test]
async fn a_server_answers_and_is_measured() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    let web = server(WantedPower::On { restart: true });
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::On)).await;

    let content = vec![7; 900 << 10];
    let write = Question::WriteFile { path: "/big".to_owned(), content: content.clone(), append: false, mode: None };
    let mut several = stream(&control, StreamPurpose::Ask { server: web.id }).await.unwrap();
    assert_eq!(ask_on(&mut several, &write).await.unwrap(), Answer::Done);
    let read = Question::ReadFile { path: "/big".to_owned(), offset: 0, max: 16 << 20 };
    assert_eq!(ask_on(&mut several, &read).await.unwrap(), Answer::Content { content, end: true });
    drop(several);
    let missing = Question::ReadFile { path: "/none".to_owned(), offset: 0, max: 1 };
    assert_eq!(ask(&control, web.id, &missing).await.unwrap_err().code, "guest_file_not_found");
    let relative = Question::ReadFile { path: "none".to_owned(), offset: 0, max: 1 };
    assert_eq!(ask(&control, web.id, &relative).await.unwrap_err().code, "invalid_question");
    assert_eq!(ask(&control, ServerId::new(), &Question::Info).await.unwrap_err().code, "guest_not_found");
    for purpose in [StreamPurpose::Screenshot { server: web.id }, StreamPurpose::Display { server: web.id }] {
        assert_eq!(stream(&control, purpose).await.err().unwrap().code, "unsupported");
    }
    let query = UsageQuery { resolution: Resolution::Second, from: None, until: None, most: 100 };
    let mut samples = vec![];
    while samples.len() < 3 {
        let mut stream = stream(&control, StreamPurpose::Usage { server: web.id, query }).await.unwrap();
        samples = frame::read::<Vec<UsageSample>>(&mut stream).await.unwrap();
    }
    assert!(samples.is_sorted_by_key(|sample| sample.at) && samples.is_sorted_by_key(|sample| sample.usage.cpu));
}

async fn fetch(control: &Fake, image: &ImageSource) -> Option<Error> {
    let mut stream = stream(control, StreamPurpose::FetchImage { image: image.clone() }).await.unwrap();
    loop {
        match frame::read::<FetchReport>(&mut stream).await.unwrap() {
            FetchReport::Underway { percent } => assert!(percent <= 100),
            FetchReport::Ended { error } => return error,
        }
    }
}

#[tokio::test]
async fn an_image_is_fetched_before_a_server_needs_it() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let data = tempfile::tempdir().unwrap();
    let _agent = Running::start(&control, &host, Some(data.path()));
    let source = image(&control, &vec![7; 1_000_000]);
    assert_eq!(fetch(&control, &source).await, None);
    assert_eq!(std::fs::read(data.path().join("images").join(&source.sha256)).unwrap(), vec![7; 1_000_000]);
    assert_eq!(fetch(&control, &source).await, None);
    let mut other = image(&control, b"what it is");
    other.sha256 = "0".repeat(64);
    assert_eq!(fetch(&control, &other).await.unwrap().code, "image_corrupt");

    // The server takes what is there.
    let web = nephos_node_api::DesiredServer { image: Some(source), ..server(WantedPower::On { restart: true }) };
    let fetched = control.state.lock().unwrap().fetched;
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::On)).await;
    assert_eq!(control.state.lock().unwrap().fetched, fetched);
}
