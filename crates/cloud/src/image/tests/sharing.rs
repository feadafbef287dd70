//! Members, tags, deactivation.

use nephos_ops::image::{
    AcceptImage, DeactivateImage, ListImageMembers, MemberStatus, ReactivateImage, RejectImage, ShareImage,
    UnshareImage, Visibility,
};
use nephos_store::{Author, Draft};

use super::*;

async fn listed(context: Context, input: Value) -> Vec<String> {
    let page = call::<ListImages>(context, input).await.unwrap();
    page.items.iter().map(|image| image.name.to_string()).collect()
}

#[tokio::test]
async fn an_image_is_shared_accepted_and_taken_back() {
    let bench = Bench::new().await;
    let project = Project { domain: DomainId::from_bits(1), parent: None, description: String::new(), enabled: true };
    let draft = Draft::new(ProjectId::from_bits(2), project).name("other".parse::<Name>().unwrap());
    bench.store.commit(Transaction::new(Author::new("test")).create(draft)).await.unwrap();
    let image = bench.create(json!({ "name": "disk" })).await;
    let id = json!({ "image": image.id });
    let with = json!({ "image": image.id, "project": ProjectId::from_bits(2) });
    let other = || bench.by(2, "member");

    let unknown = json!({ "image": image.id, "project": ProjectId::from_bits(3) });
    assert_eq!(call::<ShareImage>(bench.member(), unknown).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(call::<AcceptImage>(other(), id.clone()).await.unwrap_err().kind, ErrorKind::NotFound);
    let member = call::<ShareImage>(bench.member(), with.clone()).await.unwrap();
    assert_eq!(member.status, MemberStatus::Pending);
    let shown = call::<ShowImage>(other(), id.clone()).await.unwrap();
    assert_eq!((shown.visibility, shown.shared_with.len()), (Visibility::Shared, 0));
    assert!(call::<ShareImage>(other(), with.clone()).await.is_err(), "only the owner shares");
    assert!(listed(other(), json!({})).await.is_empty());

    call::<AcceptImage>(other(), id.clone()).await.unwrap();
    assert_eq!(listed(other(), json!({})).await, ["disk"]);
    call::<RejectImage>(other(), id.clone()).await.unwrap();
    assert!(listed(other(), json!({})).await.is_empty());
    assert_eq!(listed(other(), json!({ "member_status": "rejected" })).await, ["disk"]);
    let members = call::<ListImageMembers>(bench.member(), id.clone()).await.unwrap().items;
    assert_eq!((members.len(), members[0].status), (1, MemberStatus::Rejected));
    assert!(call::<ListImageMembers>(bench.by(3, "member"), id.clone()).await.is_err());
    // Its own project has nothing to accept.
    assert_eq!(call::<AcceptImage>(bench.member(), id.clone()).await.unwrap_err().code, "image_not_shared");

    call::<UnshareImage>(bench.member(), with.clone()).await.unwrap();
    assert_eq!(call::<UnshareImage>(bench.member(), with.clone()).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(call::<ShowImage>(other(), id.clone()).await.unwrap_err().kind, ErrorKind::NotFound);
    // What was answered once is not remembered.
    assert_eq!(call::<ShareImage>(bench.member(), with).await.unwrap().status, MemberStatus::Pending);
}

#[tokio::test]
async fn a_deactivated_image_is_not_used() {
    let bench = Bench::new().await;
    bench.create(json!({ "name": "disk" })).await;
    let image = json!({ "image": "disk" });
    assert_eq!(call::<DeactivateImage>(bench.member(), image.clone()).await.unwrap_err().code, "image_not_active");
    bench.upload("disk", body(&[1; 100])).await.unwrap();
    let shown = call::<DeactivateImage>(bench.member(), image.clone()).await.unwrap();
    assert_eq!(shown.status, ImageStatus::Deactivated);
    let refused = content_of(bench.member(), image.clone()).await.unwrap_err();
    assert_eq!((refused.kind, &*refused.code), (ErrorKind::Forbidden, "image_deactivated"));
    assert_eq!(content_of(bench.by(1, "admin"), image.clone()).await.unwrap(), [1; 100]);
    assert_eq!(listed(bench.member(), json!({ "status": "deactivated" })).await, ["disk"]);
    call::<ReactivateImage>(bench.member(), image.clone()).await.unwrap();
    assert_eq!(content_of(bench.member(), image).await.unwrap(), [1; 100]);
}

#[tokio::test]
async fn tags_are_kept_and_searched() {
    let bench = Bench::new().await;
    bench.create(json!({ "name": "a", "tags": ["linux", "small"] })).await;
    bench.create(json!({ "name": "b", "tags": ["linux"] })).await;
    assert_eq!(listed(bench.member(), json!({ "tag": "linux" })).await, ["a", "b"]);
    assert_eq!(listed(bench.member(), json!({ "tag": "small" })).await, ["a"]);
    let changed = call::<UpdateImage>(bench.member(), json!({ "image": "a", "tags": [] })).await.unwrap();
    assert!(changed.tags.is_empty());
    assert!(listed(bench.member(), json!({ "tag": "small" })).await.is_empty());
    let many: Vec<String> = (0..129).map(|n| format!("t{n}")).collect();
    assert!(serde_json::from_value::<UpdateImage>(json!({ "image": "a", "tags": many })).is_err());
}
